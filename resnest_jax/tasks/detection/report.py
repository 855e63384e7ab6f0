"""Tables of an evaluation of detection."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from resnest_jax.files import write_atomic, writing
from resnest_jax.tasks.csv_text import csv_text
from resnest_jax.tasks.detection.metrics import FIGURES, CocoAP

_OF_FIGURES = (
    "average precision at IoU 0.50 to 0.95",
    "average precision at IoU 0.50",
    "average precision at IoU 0.75",
    "average precision of small objects",
    "average precision of medium objects",
    "average precision of large objects",
    "average recall with 1 detection per image",
    "average recall with 10 detections per image",
    "average recall with 100 detections per image",
    "average recall of small objects",
    "average recall of medium objects",
    "average recall of large objects",
)


def table(metric: CocoAP, class_names: Sequence[str]) -> str:
    """Return the average precision of every class and COCO's figures, one line each."""
    lines = ["   AP  objects  class"]
    for score, objects, name in zip(metric.per_class, metric.objects, class_names, strict=True):
        lines.append(f"{_percent(score)}  {objects:7d}  {name}")
    lines += [
        f"{_percent(score)}  {name:9}  {text}"
        for score, name, text in zip(metric.figures, FIGURES, _OF_FIGURES, strict=True)
    ]
    return "\n".join(lines)


def write(folder: Path, metric: CocoAP, class_names: Sequence[str]) -> None:
    """Write ``per_class.csv`` and ``results.json`` into an existing folder.

    The second has the detections as COCO's server takes them.

    Raises:
      InputError: if they cannot be written.
    """
    rows = [
        {"class": name, "objects": objects, "ap": "" if np.isnan(score) else round(score, 6)}
        for name, objects, score in zip(class_names, metric.objects, metric.per_class, strict=True)
    ]
    with writing("output", folder):
        write_atomic(folder / "per_class.csv", csv_text(rows).encode("utf-8", "surrogateescape"))
        metric.write_results(folder / "results.json")


def _percent(score: float) -> str:
    return "    -" if np.isnan(score) else f"{100 * score:5.1f}"
