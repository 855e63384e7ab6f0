"""Tables of an evaluation of detection."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

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
    """Return the average precision of every class and COCO's figures, one line each.

    With masks there are two columns, of the boxes and of the masks.
    """
    headers = ["AP"] if metric.kinds == ("box",) else [f"{kind} AP" for kind in metric.kinds]
    header = "  ".join(f"{text:>5}" for text in headers)
    lines = [f"{header}  objects  class"]

    def numbers(of_kinds: Sequence[float]) -> str:
        pairs = zip(headers, of_kinds, strict=True)
        return "  ".join(f"{_percent(score):>{max(5, len(text))}}" for text, score in pairs)

    for name, objects, *of_kinds in _per_class(metric, class_names):
        lines.append(f"{numbers(of_kinds)}  {objects:7d}  {name}")
    figures = zip(*(scores.figures for scores in metric.scores.values()), strict=True)
    for name, text, of_kinds in zip(FIGURES, _OF_FIGURES, figures, strict=True):
        lines.append(f"{numbers(of_kinds)}  {name:9}  {text}")
    return "\n".join(lines)


def write(folder: Path, metric: CocoAP, class_names: Sequence[str]) -> None:
    """Write ``per_class.csv`` and ``results.json`` into an existing folder.

    The second has the detections as COCO's server takes them.

    Raises:
      InputError: if they cannot be written.
    """
    columns = ["ap" if kind == "box" else f"{kind}_ap" for kind in metric.kinds]
    rows = [
        {"class": name, "objects": objects}
        | {
            column: "" if np.isnan(score) else round(score, 6)
            for column, score in zip(columns, of_kinds, strict=True)
        }
        for name, objects, *of_kinds in _per_class(metric, class_names)
    ]
    with writing("output", folder):
        write_atomic(folder / "per_class.csv", csv_text(rows).encode("utf-8", "surrogateescape"))
        metric.write_results(folder / "results.json")


def _per_class(metric: CocoAP, class_names: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """Yield name, number of objects and average precision of each kind of every class."""
    scores = [*metric.scores.values()]
    return zip(class_names, scores[0].objects, *(s.per_class for s in scores), strict=True)


def _percent(score: float) -> str:
    return "-" if np.isnan(score) else f"{100 * score:.1f}"
