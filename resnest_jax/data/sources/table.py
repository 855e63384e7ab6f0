"""Labelled images that a CSV file lists."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from resnest_jax.data.sources.folder import FolderRecords
from resnest_jax.data.sources.records import EVAL_SPLITS, Dataset, Split
from resnest_jax.errors import InputError

_COLUMNS = ("file", "label")
_SEPARATOR = ";"
_HOLD_OUT = 5  # of one file, every fifth row is for evaluation


class _Row(NamedTuple):
    """An image: its path, its labels, and where it is listed."""

    path: str
    labels: tuple[str, ...]
    place: str


def open_table(path: Path, train_split: str, eval_split: str, multi_label: bool) -> Dataset:
    """Open a CSV file, or a folder with one for each split.

    Arguments and errors are those of ``sources.open_dataset``.
    """
    if path.is_dir():
        files = (
            _split_file(path, "train_split", train_split, ("train",)),
            _split_file(path, "eval_split", eval_split, EVAL_SPLITS),
        )
        train, held_out = (_read(file, multi_label) for file in files)
        class_names = _class_names(train, path)
    elif train_split == eval_split == "auto":
        rows = _read(path, multi_label)
        class_names = _class_names(rows, path)
        held_out = rows[_HOLD_OUT - 1 :: _HOLD_OUT]
        train = [row for i, row in enumerate(rows) if i % _HOLD_OUT < _HOLD_OUT - 1]
        if not held_out:
            raise InputError(
                f"{path} lists {len(rows)} images; it takes {_HOLD_OUT} to hold one out for "
                "evaluation"
            )
    else:
        raise InputError(
            f"train_split {train_split!r} and eval_split {eval_split!r} need a folder with "
            f"train.csv and val.csv; {path} is not one"
        )
    empty = sum(not row.labels for row in train + held_out)
    notes = (f"{path}: {empty} images without a label",) if empty else ()
    return Dataset(
        train=_records(train, class_names, multi_label),
        eval=_records(held_out, class_names, multi_label),
        class_names=class_names,
        notes=notes,
    )


def open_table_split(path: Path, split: str, multi_label: bool) -> Split:
    """Open one split of a folder of CSV files, or all of one file.

    Arguments and errors are those of ``sources.open_split``.
    """
    file = _split_file(path, "eval_split", split, EVAL_SPLITS) if path.is_dir() else path
    rows = _read(file, multi_label)
    class_names = _class_names(rows, file)
    return Split(_records(rows, class_names, multi_label), class_names)


def _split_file(folder: Path, field: str, split: str, auto: tuple[str, ...]) -> Path:
    """Return the file of a split: the named one, or the first of ``auto`` that exists."""
    names = auto if split == "auto" else (split,)
    files = [folder / f"{name}.csv" for name in names]
    if found := next((file for file in files if file.is_file()), None):
        return found
    there = sorted(file.name for file in folder.glob("*.csv"))
    raise InputError(
        f"{field} {split!r}: no {' or '.join(file.name for file in files)} in {folder}, which has "
        f"{there}"
    )


def _read(path: Path, multi_label: bool) -> list[_Row]:
    """Read and check a CSV file."""
    lines = _read_lines(path)
    header_line, header = lines[0] if lines else (1, [])
    if sorted(header) != sorted(_COLUMNS):
        raise InputError(
            f"{path}, line {header_line}: the header must be {','.join(_COLUMNS)}; got "
            f"{','.join(header)!r}"
        )
    rows: dict[str, _Row] = {}
    for number, values in lines[1:]:
        place = f"{path}, line {number}"
        if len(values) != len(header):
            raise InputError(f"{place}: {len(values)} fields; expected {len(header)}")
        fields = dict(zip(header, values, strict=True))
        file = str(path.parent / fields["file"])
        if not fields["file"] or not Path(file).is_file():
            raise InputError(f"{place}: no such file: {file}")
        if file in rows:
            raise InputError(f"{place}: {file} is listed before, in {rows[file].place}")
        rows[file] = _Row(file, _labels(fields["label"], multi_label, place), place)
    if not rows:
        raise InputError(f"{path} lists no images")
    return list(rows.values())


def _read_lines(path: Path) -> list[tuple[int, list[str]]]:
    """Return the line number and the values of every row that is not blank."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            try:
                return [(reader.line_num, values) for values in reader if values]
            except csv.Error as error:
                raise InputError(f"{path}, line {reader.line_num}: {error}") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} must be a CSV file in UTF-8: {error}") from None


def _labels(text: str, multi_label: bool, place: str) -> tuple[str, ...]:
    """Split the labels of an image; with ``multi_label`` there may be none."""
    labels = tuple(label.strip() for label in text.split(_SEPARATOR)) if text.strip() else ()
    if not all(labels) or len(set(labels)) < len(labels):
        raise InputError(
            f"{place}: labels must differ and must not be empty, such as cat{_SEPARATOR}dog; got "
            f"{text!r}"
        )
    if not multi_label and len(labels) != 1:
        raise InputError(
            f"{place}: {len(labels)} labels ({text!r}); set multi_label to True if an image may "
            "have any number of them"
        )
    return labels


def _class_names(rows: Iterable[_Row], path: Path) -> tuple[str, ...]:
    """Return all labels, sorted."""
    names = sorted({label for row in rows for label in row.labels})
    if not names:
        raise InputError(f"{path} has no labels to train on")
    return tuple(names)


def _records(rows: Sequence[_Row], class_names: Sequence[str], multi_label: bool) -> FolderRecords:
    """Return the records of rows, with one index or a row of 0 and 1 as label."""
    index = {name: i for i, name in enumerate(class_names)}
    labels = np.zeros((len(rows), len(class_names)), np.int8)
    for i, row in enumerate(rows):
        for label in row.labels:
            if label not in index:
                raise InputError(f"{row.place}: the class {label!r} is missing from training")
            labels[i, index[label]] = 1
    paths = [row.path for row in rows]
    return FolderRecords(paths, labels if multi_label else labels.argmax(1).astype(np.int32))
