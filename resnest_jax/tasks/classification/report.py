"""Write what a classifier said of each image, and of which classes it is wrong."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from resnest_jax.errors import InputError
from resnest_jax.files import write_atomic, writing
from resnest_jax.tasks.csv_text import csv_text
from resnest_jax.tasks.matrix import draw_confusion

SUFFIXES = (".csv", ".json")
WORST = 10
OTHERS = "other classes"


class Prediction(NamedTuple):
    """The best classes of one image, the first is the best.

    ``label`` is the true class, None if it is not known.
    """

    file: str
    label: int | None
    classes: Sequence[int]
    probabilities: Sequence[float]


class Confusion(NamedTuple):
    """Counts of images by true and predicted class, of the classes that have images.

    Attributes:
      names: of the classes.
      counts: int (C, C), or (C, C + 1) with the predictions of other classes in the last column;
        rows are true classes.
      mistaken_for: the most frequent wrong prediction of each class, "" if there is none.
    """

    names: Sequence[str]
    counts: np.ndarray
    mistaken_for: Sequence[str]

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        return [*self.names] + [OTHERS] * (self.counts.shape[1] - len(self.names))

    @property
    def accuracy(self) -> np.ndarray:
        """Accuracy of each class, from 0 to 1."""
        return np.diagonal(self.counts) / self.counts.sum(1)


def check_predictions(path: Path | None) -> None:
    """Raise InputError if a table of predictions would have an unknown format."""
    if path is not None and path.suffix.lower() not in SUFFIXES:
        raise InputError(f"predictions must end in one of {', '.join(SUFFIXES)}; got {path}")


def write_predictions(
    path: Path, predictions: Sequence[Prediction], class_names: Sequence[str]
) -> None:
    """Write a .csv with one line per image, or a .json with a list of them.

    Raises:
      InputError: if the file cannot be written.
    """
    check_predictions(path)
    rows = [_row(prediction, class_names) for prediction in predictions]
    if path.suffix.lower() == ".json":
        content = json.dumps(rows, indent=1) + "\n"
    else:
        content = csv_text([_flat(row) for row in rows])
    with writing("predictions", path):
        # A file name may hold bytes that are not UTF-8.
        write_atomic(path, content.encode("utf-8", "surrogateescape"))


def _row(prediction: Prediction, class_names: Sequence[str]) -> dict[str, Any]:
    file, label, classes, probabilities = prediction
    best = [
        {"class": class_names[index], "probability": round(float(probability), 6)}
        for index, probability in zip(classes, probabilities, strict=True)
    ]
    truth = {} if label is None else {"label": class_names[label]}
    return {"file": file, **truth, "prediction": best[0]["class"], "top": best}


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """Return the columns of a row: the best class, then the others with their ranks."""
    first, *others = row["top"]
    flat = {name: value for name, value in row.items() if name != "top"}
    flat["probability"] = first["probability"]
    for rank, other in enumerate(others, 2):
        flat |= {f"class_{rank}": other["class"], f"probability_{rank}": other["probability"]}
    return flat


def count_confusion(predictions: Sequence[Prediction], class_names: Sequence[str]) -> Confusion:
    """Count the labelled images by true and predicted class."""
    labels = np.array([prediction.label for prediction in predictions], int)
    predicted = np.array([prediction.classes[0] for prediction in predictions], int)
    present = np.unique(labels)
    column = np.full(len(class_names), len(present))  # the last is of the other classes
    column[present] = np.arange(len(present))
    counts = np.zeros((len(present), len(present) + 1), int)
    np.add.at(counts, (column[labels], column[predicted]), 1)
    if len(present) == len(class_names):
        counts = counts[:, :-1]
    mistaken_for = [
        _most_frequent(predicted[(labels == label) & (predicted != label)], class_names)
        for label in present
    ]
    return Confusion([class_names[int(i)] for i in present], counts, mistaken_for)


def _most_frequent(classes: np.ndarray, class_names: Sequence[str]) -> str:
    return class_names[int(np.bincount(classes).argmax())] if len(classes) else ""


def worst_classes(confusion: Confusion) -> str:
    """Return a table of the classes with the lowest accuracy, at most ten."""
    lines = ["accuracy  images  class, mistaken for"]
    for row in np.argsort(confusion.accuracy, kind="stable")[:WORST]:
        name, wrong = confusion.names[row], confusion.mistaken_for[row]
        lines.append(
            f"{100 * confusion.accuracy[row]:6.2f} %  {confusion.counts[row].sum():6d}  {name}"
            + (f", {wrong}" if wrong else "")
        )
    return "\n".join(lines)


def write_confusion(folder: Path, confusion: Confusion) -> None:
    """Write ``per_class.csv``, ``confusion.csv`` and ``confusion.png`` into an existing folder.

    Raises:
      InputError: if they cannot be written.
    """
    classes = [
        {
            "class": name,
            "images": int(confusion.counts[row].sum()),
            "right": int(confusion.counts[row, row]),
            "accuracy": round(float(confusion.accuracy[row]), 6),
            "mistaken_for": confusion.mistaken_for[row],
        }
        for row, name in enumerate(confusion.names)
    ]
    matrix = [
        {"true": name, **dict(zip(confusion.columns, confusion.counts[row].tolist(), strict=True))}
        for row, name in enumerate(confusion.names)
    ]
    with writing("output", folder):
        for name, rows in (("per_class.csv", classes), ("confusion.csv", matrix)):
            write_atomic(folder / name, csv_text(rows).encode("utf-8", "surrogateescape"))
        _draw(folder / "confusion.png", confusion)


def _draw(path: Path, confusion: Confusion) -> None:
    """Draw the matrix with its counts."""
    counts = confusion.counts
    right, total = int(np.trace(counts[:, : len(counts)])), int(counts.sum())
    draw_confusion(
        path,
        100 * counts / counts.sum(1, keepdims=True),
        np.where(counts, counts.astype(str), ""),
        confusion.columns,
        of="the true class",
        title=f"{right:,} of {total:,} images right: {100 * right / total:.2f} %",
    )
