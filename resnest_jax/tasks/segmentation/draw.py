"""Draw label maps, batches, and the scores of an evaluation."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import matplotlib.figure
import matplotlib.patches
import numpy as np
from PIL import Image

from resnest_jax.data.label_tables import IGNORED
from resnest_jax.files import writing
from resnest_jax.tasks.loading import read_batch
from resnest_jax.tasks.matrix import short
from resnest_jax.tasks.segmentation.metrics import ConfusionMatrix
from resnest_jax.tasks.segmentation.task import Segmentation
from resnest_jax.training.run import Run

Palette = Sequence[tuple[int, int, int]]  # colour of each class, RGB from 0 to 255

OPACITY = 0.55  # of the colours over a photo
LONGER_SIDE = 8.0  # of a photo in a picture, in inches
IGNORED_COLOUR = (224, 224, 192)  # as in VOC
COLUMNS = 8  # images in a row of a batch
BARS = 40  # most classes in a column of bars
LISTED = 30  # most classes in the legend of a batch


def save_label_map(labels: np.ndarray, palette: Palette, path: Path) -> None:
    """Write a label map as a PNG of one channel, whose palette has the colours.

    Args:
      labels: uint8 (H, W); the PNG holds the same values.
      path: PNG to write.

    Raises:
      InputError: if it cannot be written.
    """
    colours = np.zeros((256, 3), np.uint8)
    colours[IGNORED] = IGNORED_COLOUR
    colours[: len(palette)] = palette
    image = Image.fromarray(labels, "L")
    image.putpalette(colours.tobytes())
    with writing("output", path):
        image.save(path, format="PNG")


def class_shares(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Return the share of the labelled pixels that each class has, float64 (num_classes,)."""
    counts = np.bincount(labels[labels != IGNORED], minlength=num_classes)
    return counts / max(counts.sum(), 1)


def draw_overlay(
    photo: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    palette: Palette,
    path: Path,
) -> None:
    """Draw a photo with the colours of its classes, and a legend of the classes that it has.

    Args:
      photo: uint8 (H, W, 3).
      labels: uint8 (H, W); ignored pixels show the photo alone.
      path: PNG to write.

    Raises:
      InputError: if it cannot be written.
    """
    height, width = labels.shape
    shares = class_shares(labels, len(class_names))
    present = _present(shares)
    inches = LONGER_SIDE / max(height, width)
    size = (width * inches + 2.5, max(height * inches, 0.25 * len(present) + 0.2))
    figure = matplotlib.figure.Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    axes.axis("off")
    axes.imshow(_blend(photo, labels, palette))
    _add_legend(figure, present, shares, class_names, palette)
    with writing("output", path):
        figure.savefig(path, dpi=150, format="png")


def draw_batch(run: Run, path: Path, split: str, batch_index: int = 0) -> None:
    """Draw a batch with its label maps over it as a PNG.

    Args:
      run: a run of segmentation.
      path: PNG to write.
      split: ``train``: augmented; ``eval``: the first batch.
      batch_index: training batch of the run, from 0.

    Raises:
      InputError: if the picture cannot be written.
    """
    names, palette = run.batches.class_names, cast(Segmentation, run.task).palette
    batch = read_batch(run.batches, split, batch_index)
    images, maps = batch["image"], batch["labels"]
    title = "Training images after augmentation, with their label maps over them"
    if split == "eval":
        title = "Evaluation images as the network sees them, with their label maps over them"
    shares = class_shares(maps, len(names))
    present = _present(shares)[:LISTED]
    columns = min(COLUMNS, len(images))
    rows = math.ceil(len(images) / columns)
    size = (2 * columns + 2.5, max(2 * rows, 0.25 * len(present)) + 0.5)
    figure = matplotlib.figure.Figure(figsize=size, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels:
        axes.axis("off")
    for axes, image, labels in zip(panels, images, maps, strict=False):
        axes.imshow(_blend(image, labels, palette))
    _add_legend(figure, present, shares, names, palette)
    figure.suptitle(title)
    with writing("output", path):
        figure.savefig(path, dpi=100, format="png")


def draw_class_scores(metric: ConfusionMatrix, class_names: Sequence[str], path: Path) -> None:
    """Draw the IoU of each class as a bar, the best first, and its accuracy as a mark.

    Args:
      path: PNG to write.

    Raises:
      InputError: if it cannot be written.
    """
    iou, accuracy, scores = metric.iou(), metric.accuracy(), metric.compute()
    order = sorted(range(len(iou)), key=lambda i: -np.nan_to_num(iou[i], nan=-1))
    texts = ["absent" if np.isnan(score) else f"{100 * score:.1f}" for score in iou]
    labels = [f"{short(name)}  {text}" for name, text in zip(class_names, texts, strict=True)]
    columns = math.ceil(len(order) / BARS)
    rows = math.ceil(len(order) / columns)
    figure = matplotlib.figure.Figure(
        figsize=(6 * columns, 1.6 + 0.24 * rows), layout="constrained"
    )
    for i, axes in enumerate(figure.subplots(1, columns, squeeze=False)[0]):
        shown = order[i * rows : (i + 1) * rows]
        at = np.arange(len(shown))
        axes.barh(at, np.nan_to_num(100 * iou[shown]), color="#4878a8", label="IoU")
        axes.plot(100 * accuracy[shown], at, "|", color="black", markersize=9, label="accuracy")
        axes.set_yticks(at, [labels[j] for j in shown], fontsize=8, parse_math=False)
        axes.set(xlim=(0, 100), ylim=(rows - 0.4, -0.6), xlabel="%")
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
        if i == 0:
            figure.legend(*axes.get_legend_handles_labels(), loc="outside lower right", ncols=2)
    percent = {name: f"{100 * score:.2f} %" for name, score in scores.items()}
    figure.suptitle(
        f"mean IoU {percent['miou']}, of present classes {percent['miou_present']}\n"
        f"pixel accuracy {percent['pixel_accuracy']}",
        fontsize=10,
    )
    with writing("output", path):
        figure.savefig(path, dpi=100, format="png")


def _blend(photo: np.ndarray, labels: np.ndarray, palette: Palette) -> np.ndarray:
    """Return the photo with the colours of its classes over it, uint8 (H, W, 3)."""
    colours = np.zeros((256, 3))
    colours[: len(palette)] = palette
    opacity = OPACITY * (labels != IGNORED)[..., None]
    return np.rint((1 - opacity) * photo + opacity * colours[labels]).astype(np.uint8)


def _present(shares: np.ndarray) -> list[int]:
    """Return the classes that there are, the largest first."""
    return sorted(np.flatnonzero(shares).tolist(), key=lambda i: -shares[i])


def _add_legend(
    figure: matplotlib.figure.Figure,
    classes: Sequence[int],
    shares: np.ndarray,
    class_names: Sequence[str],
    palette: Palette,
) -> None:
    """Add the colours, names and shares of classes on the right."""
    patches = [
        matplotlib.patches.Patch(
            facecolor="#{:02x}{:02x}{:02x}".format(*palette[i]),
            edgecolor="grey",
            label=f"{short(class_names[i])}  {_percent(shares[i])}",
        )
        for i in classes
    ]
    legend = figure.legend(handles=patches, loc="outside right upper", frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share >= 0.0005 else "< 0.1 %"
