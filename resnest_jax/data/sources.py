"""Opening a data set by name: random access to records whose images are still encoded."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import tensorflow_datasets as tfds

from resnest_jax.data import digits  # noqa: F401  registers sklearn_digits with TFDS
from resnest_jax.errors import InputError

EVAL_SPLITS = ("validation", "val", "test")
EXTENSIONS = (".jpg", ".jpeg", ".png")
LAYOUT = "expected PATH/train/CLASS/*.jpg and PATH/val/CLASS/*.jpg, or PATH/CLASS/*.jpg (or .png)"
HOLD_OUT = 5  # every fifth image is held out where a folder has no split


class Records(Protocol):
    """A sequence of ``{"image": bytes, "label": int, "key": str}``; ``key`` names the record."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict: ...


class Dataset(NamedTuple):
    """Training and evaluation records, and the names of the labels."""

    train: Records
    eval: Records
    class_names: tuple[str, ...]


def open_dataset(
    name: str, *, train_split: str = "auto", eval_split: str = "auto", data_dir: str | None = None
) -> Dataset:
    """Open ``folder:PATH`` or a TFDS name, which is prepared (array_record) on first use.

    Args:
      name: a TFDS name (``sklearn_digits``, ``imagenet2012``, ``cifar10:3.0.2``), or
        ``folder:PATH`` with one folder a class, below ``train`` and ``val`` if there are splits.
      train_split, eval_split: a split in TFDS's slicing notation, or a subfolder of PATH;
        ``auto`` takes ``train``, and the first of ``validation``, ``val``, ``test``; where there
        is none, a fifth of the images is held out.
      data_dir: where TFDS keeps its data sets; None is TFDS's default (``TFDS_DATA_DIR``).

    Raises:
      InputError: if there is no such data set or split, or it is not one of labelled images.
    """
    if name.startswith("folder:"):
        root = Path(name.removeprefix("folder:")).expanduser()
        return _open_folder(root, train_split, eval_split)
    return _open_tfds(name, train_split, eval_split, data_dir)


class TfdsRecords:
    """A split of a prepared TFDS data set."""

    def __init__(self, source: Sequence, name: str):
        self.source = source
        self.name = name

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict:
        record = self.source[index]
        key = f"{self.name}#{index}"
        return {"image": record["image"], "label": int(record["label"]), "key": key}


def _open_tfds(name: str, train_split: str, eval_split: str, data_dir: str | None) -> Dataset:
    try:
        builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    except Exception as error:
        if isinstance(error, tfds.core.registered.DatasetNotFoundError):
            error = "TFDS has no such data set (for a folder of images write folder:PATH)"
        raise InputError(f"dataset {name!r}: {_first_line(error)}") from None
    features = builder.info.features
    labelled = hasattr(features, "keys") and {"image", "label"} <= set(features.keys())
    if not labelled:
        raise InputError(f"dataset {name!r} must have features image and label; it has {features}")
    if not builder.is_prepared():
        try:
            builder.download_and_prepare()
        except Exception as error:
            reason = _first_line(error)
            raise InputError(f"dataset {name!r}: TFDS could not prepare it: {reason}") from error
    present = [split for split in EVAL_SPLITS if split in builder.info.splits]
    if eval_split == "auto":
        eval_split = present[0] if present else "train[80%:]"
    if train_split == "auto":
        train_split = "train" if present else "train[:80%]"

    def read(split: str) -> TfdsRecords:
        decoders = {"image": tfds.decode.SkipDecoding()}
        try:
            source = builder.as_data_source(split, decoders=decoders)
        except Exception as error:
            reason = _first_line(error)
            raise InputError(f"dataset {name!r}, split {split!r}: {reason}") from None
        if not len(source):
            raise InputError(f"dataset {name!r}, split {split!r} is empty")
        return TfdsRecords(source, f"{name}/{split}")

    names = getattr(features["label"], "names", None) or range(features["label"].num_classes)
    return Dataset(read(train_split), read(eval_split), tuple(map(str, names)))


class FolderRecords:
    """Image files with their labels."""

    def __init__(self, paths: Sequence[str], labels: Sequence[int]):
        # Arrays of bytes, not dictionaries: a worker process gets a copy of a million paths.
        self.paths = np.array([os.fsencode(path) for path in paths])
        self.labels = np.array(labels, np.int32)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict:
        path = os.fsdecode(self.paths[index])
        with open(path, "rb") as file:
            image = file.read()
        return {"image": image, "label": int(self.labels[index]), "key": path}

    def subset(self, mask: np.ndarray) -> "FolderRecords":
        """The records where the mask is true."""
        return FolderRecords(self.paths[mask], self.labels[mask])


def _open_folder(root: Path, train_split: str, eval_split: str) -> Dataset:
    if not root.is_dir():
        raise InputError(f"dataset folder:{root}: no such folder; {LAYOUT}")
    train_root = root / ("train" if train_split == "auto" else train_split)
    if train_split == "auto" and not train_root.is_dir():
        if eval_split != "auto":
            raise InputError(f"eval_split {eval_split!r}: {root} has no folder train; {LAYOUT}")
        return _hold_out(root)
    if eval_split == "auto":
        present = [split for split in EVAL_SPLITS if (root / split).is_dir()]
        if not present:
            raise InputError(f"dataset folder:{root}: no folder val, validation or test; {LAYOUT}")
        eval_split = present[0]
    class_names = _class_names(train_root)
    train = _list_images(train_root, class_names)
    eval_root = root / eval_split
    unknown = sorted(set(_class_names(eval_root)) - set(class_names))
    if unknown:
        raise InputError(f"{eval_root}: classes that {train_root} has not: {', '.join(unknown)}")
    present = [name for name in class_names if (eval_root / name).is_dir()]
    return Dataset(train, _list_images(eval_root, class_names, present), class_names)


def _hold_out(root: Path) -> Dataset:
    class_names = _class_names(root)
    records = _list_images(root, class_names)
    # Counted within the class: as many of each class in both parts.
    starts = np.searchsorted(records.labels, records.labels)
    held_out = (np.arange(len(records)) - starts) % HOLD_OUT == HOLD_OUT - 1
    if not held_out.any():
        raise InputError(
            f"dataset folder:{root}: no class has the {HOLD_OUT} images it takes to hold one out "
            f"for evaluation; {LAYOUT}"
        )
    return Dataset(records.subset(~held_out), records.subset(held_out), class_names)


def _class_names(root: Path) -> tuple[str, ...]:
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; {LAYOUT}")
    entries = sorted(e.name for e in os.scandir(root) if e.is_dir() and e.name[0] != ".")
    if not entries:
        raise InputError(f"{root}: no class folders in it; {LAYOUT}")
    return tuple(entries)


def _list_images(
    root: Path, class_names: tuple[str, ...], present: Sequence[str] | None = None
) -> FolderRecords:
    paths, labels = [], []
    for label, name in enumerate(class_names):
        if present is not None and name not in present:
            continue
        found = sorted(
            entry.path
            for entry in os.scandir(root / name)
            if entry.name.lower().endswith(EXTENSIONS) and entry.name[0] != "."
        )
        if not found:
            raise InputError(f"{root / name}: no images (.jpg, .jpeg, .png) in it; {LAYOUT}")
        paths += found
        labels += [label] * len(found)
    return FolderRecords(paths, labels)


def _first_line(error: object) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
