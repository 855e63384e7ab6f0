"""Records by index, and data sets of records."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, cast

import numpy as np

EVAL_SPLITS = ("validation", "val", "test")  # the first that exists, if none is named


class Records(Protocol):
    """Random access to records: encoded images, labels, and the ``key`` that identifies each.

    For classification ``{"image": bytes, "label": int, "key": str}``; with several labels per image
    the label is a list of 0 and 1, one per class. With label maps see ``masks.MaskRecords``.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...

    def key(self, index: int) -> str:
        """Return the key of a record, without reading the record."""
        ...


class LabelledRecords(Records, Protocol):
    """Records with a list of their labels."""

    def labels(self) -> np.ndarray:
        """Return the labels of all records, int (N,); with several labels per image (N, classes).

        It may read every record.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Training and evaluation records, and the class name of each label.

    ``notes`` are lines for the user, for example what was left out.
    """

    train: Records
    eval: Records
    class_names: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def train_labels(self) -> np.ndarray:
        """Return the labels of the training records, which are ``LabelledRecords``."""
        return cast(LabelledRecords, self.train).labels()

    def count_classes(self) -> np.ndarray:
        """Return the number of training examples of each class, int (classes,).

        It may read every record.
        """
        labels = self.train_labels()
        one_each = labels.ndim == 1
        return np.bincount(labels, minlength=len(self.class_names)) if one_each else labels.sum(0)


class Split(NamedTuple):
    """The records of one split, the class name of each label, and lines for the user."""

    records: Records
    class_names: tuple[str, ...]
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Relabelled:
    """Records with other labels: ``labels[i]`` in place of i."""

    records: Records
    labels: Sequence[int]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self.records[index]
        return {**record, "label": self.labels[record["label"]]}

    def key(self, index: int) -> str:
        """Return the key of a record."""
        return self.records.key(index)


def find_split(available: Sequence[str], names: Sequence[str]) -> str | None:
    """Return the first of the names that there is, in this case or else in any."""
    for name in names:
        matches = [other for other in available if other.lower() == name.lower()]
        if matches:
            return name if name in matches else matches[0]
    return None
