"""Tables of the classes of an evaluation."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from resnest_jax.files import write_atomic, writing
from resnest_jax.tasks.csv_text import csv_text
from resnest_jax.tasks.matrix import draw_confusion
from resnest_jax.tasks.segmentation.draw import draw_class_scores
from resnest_jax.tasks.segmentation.metrics import ConfusionMatrix


def table(metric: ConfusionMatrix, class_names: Sequence[str]) -> str:
    """Return the scores of every class, and the means, one line each."""
    lines = ["    IoU  accuracy      pixels  class"]
    rows = zip(metric.iou(), metric.accuracy(), metric.confusion.sum(1), class_names, strict=True)
    for iou, accuracy, pixels, name in rows:
        lines.append(f"{_percent(iou)}  {_percent(accuracy)}  {pixels:11d}  {name}")
    scores = metric.compute()
    lines += [
        f"pixel accuracy {100 * scores['pixel_accuracy']:.2f} %",
        f"mean IoU {100 * scores['miou']:.2f} % of all classes, absent ones 0, as published; "
        f"{100 * scores['miou_present']:.2f} % of the present classes",
    ]
    return "\n".join(lines)


def write(folder: Path, metric: ConfusionMatrix, class_names: Sequence[str]) -> None:
    """Write ``per_class.csv``, ``per_class.png`` and ``confusion.png`` into an existing folder.

    Raises:
      InputError: if they cannot be written.
    """
    rows = [
        {"class": name, "pixels": int(pixels), "iou": _number(iou), "accuracy": _number(accuracy)}
        for name, pixels, iou, accuracy in zip(
            class_names, metric.confusion.sum(1), metric.iou(), metric.accuracy(), strict=True
        )
    ]
    with writing("output", folder):
        write_atomic(folder / "per_class.csv", csv_text(rows).encode("utf-8", "surrogateescape"))
    draw_class_scores(metric, class_names, folder / "per_class.png")
    confusion = metric.confusion
    shares = 100 * confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    texts = np.array([[f"{x:.0f}" if x >= 0.5 else "" for x in row] for row in shares])
    picture = folder / "confusion.png"
    draw_confusion(picture, shares, texts, class_names, of="the pixels of the true class")


def _percent(score: float) -> str:
    return "      -" if np.isnan(score) else f"{100 * score:5.1f} %"


def _number(score: float) -> float | str:
    """Return the score for a table; a class without pixels has none."""
    return "" if np.isnan(score) else round(float(score), 6)
