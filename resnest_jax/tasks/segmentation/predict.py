"""Segment photos: label maps, pictures and the shares of the classes."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from resnest_jax.data.label_tables import published_names, published_table, voc_color
from resnest_jax.files import make_folder, write_atomic, writing
from resnest_jax.tasks.csv_text import csv_text
from resnest_jax.tasks.photos import find_images, output_names, readable_photos
from resnest_jax.tasks.progress import image_bar
from resnest_jax.tasks.segmentation.draw import (
    Palette,
    class_shares,
    draw_overlay,
    save_label_map,
)
from resnest_jax.tasks.segmentation.evaluate import make_evaluator, normalized
from resnest_jax.weights.segmentation import Segmenter

SHARES = "class_shares.csv"
PRINTED = 5  # classes of an image


def run(
    segmenter: Segmenter, files: Sequence[str], output: Path, *, multi_scale: bool = False
) -> int:
    """Segment images; print the largest classes of each, and unreadable files on stderr.

    Writes ``NAME_overlay.png``, the photo with the classes over it and a legend, and
    ``NAME_labels.png``, the classes from 0 with their colours as palette, for each image, and
    ``class_shares.csv``: the first column is the image, the others are the classes.

    Args:
      files: images, and folders of images.
      output: directory to write.
      multi_scale: at ``evaluation.scales``, with ``augment.flip`` mirrored too; else at scale 1.

    Returns:
      The exit code: 1 if any file could not be read, else 0.

    Raises:
      InputError: if there are no images, two would get the same name, or the directory cannot be
        written.
    """
    paths = find_images(files)
    names = output_names(paths)
    class_names, palette = segmenter.class_names, _palette(segmenter)
    column = _free_column(class_names)
    make_folder("output", output)
    evaluator = make_evaluator(segmenter, single=not multi_scale)
    read: list[tuple[Path, np.ndarray]] = []
    rows = []
    with image_bar(len(paths)) as bar:
        for prediction in evaluator.predict(_photos(paths, read)):
            path, photo = read.pop(0)
            start = output / names[path]
            draw_overlay(
                photo, prediction.labels, class_names, palette, Path(f"{start}_overlay.png")
            )
            save_label_map(prediction.labels, palette, Path(f"{start}_labels.png"))
            shares = class_shares(prediction.labels, len(class_names))
            rows.append(
                {column: str(path)}
                | {name: round(float(s), 6) for name, s in zip(class_names, shares, strict=True)}
            )
            bar.write(_summary(path, shares, class_names))
            bar.update()
    with writing("output", output):
        write_atomic(output / SHARES, csv_text(rows).encode("utf-8", "surrogateescape"))
    return int(len(rows) < len(paths))


def _photos(paths: Sequence[Path], read: list[tuple[Path, np.ndarray]]) -> Iterator[np.ndarray]:
    """Yield normalised images; append path and pixels of each to ``read``."""
    for path, photo in readable_photos(paths):
        read.append((path, photo))
        yield normalized(photo)


def _free_column(class_names: Sequence[str]) -> str:
    """Return the header of the images: ``file``, after underscores if a class has that name."""
    column = "file"
    while column in class_names:
        column = f"_{column}"
    return column


def _palette(segmenter: Segmenter) -> Palette:
    """Return the colours of the classes; of runs that did not store them those of the data set."""
    if segmenter.card.palette is not None:
        return segmenter.card.palette
    kind = segmenter.config.dataset.partition(":")[0]
    if kind in published_names():
        return published_table(kind).palette
    return [voc_color(i + 1) for i in range(len(segmenter.class_names))]


def _summary(path: Path, shares: np.ndarray, class_names: Sequence[str]) -> str:
    order = [i for i in np.argsort(-shares, kind="stable") if shares[i] > 0][:PRINTED]
    return "\n".join([str(path), *[f"{100 * shares[i]:7.2f} %  {class_names[i]}" for i in order]])
