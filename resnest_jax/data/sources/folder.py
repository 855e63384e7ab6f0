"""Folders of labelled images."""

import collections
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from resnest_jax.data.decode import image_suffixes
from resnest_jax.data.sources.records import EVAL_SPLITS, Dataset, Split
from resnest_jax.errors import InputError
from resnest_jax.files import read_file

_TRAIN = ("train",)  # names of splits, in any case
_FOLDER_LAYOUT = (
    "expected PATH/train/CLASS/IMAGE and PATH/val/CLASS/IMAGE, or PATH/CLASS/IMAGE; images may be "
    "in subfolders of a class"
)
# Without an evaluation split, every fifth image of each class is held out.
_HOLD_OUT = 5


class FolderRecords:
    """Records of image files: one list of paths and one array of labels, (N,) or (N, classes)."""

    def __init__(self, paths: Sequence[str], labels: np.ndarray):
        self._paths = paths
        self._labels = labels

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path = self._paths[index]
        image = read_file("image", path)
        return {"image": image, "label": self._labels[index].tolist(), "key": path}

    def key(self, index: int) -> str:
        """Return the path."""
        return self._paths[index]

    def labels(self) -> np.ndarray:
        """Return all labels."""
        return self._labels


class _Listing(NamedTuple):
    """Images of class folders, their labels, and the other files by suffix."""

    paths: list[str]
    labels: np.ndarray
    class_names: tuple[str, ...]
    others: collections.Counter[str]


def open_folder(root: Path, train_split: str, eval_split: str) -> Dataset:
    """Open a folder of images, with or without one folder per split.

    Arguments and errors are those of ``sources.open_dataset``.
    """
    _check_folder(root)
    if train_split == eval_split == "auto" and not _has_splits(root):
        return _hold_out(root)
    folders = (
        _split_folder(root, "train_split", train_split, _TRAIN),
        _split_folder(root, "eval_split", eval_split, EVAL_SPLITS),
    )
    train = _list_images(folders[0])
    held_out = _list_images(folders[1], train.class_names)
    unused = [name for name in subfolders(root) if root / name not in folders]
    return Dataset(
        train=FolderRecords(train.paths, train.labels),
        eval=FolderRecords(held_out.paths, held_out.labels),
        class_names=train.class_names,
        notes=_notes(root, train.others + held_out.others, unused),
    )


def open_folder_split(root: Path, split: str) -> Split:
    """Open one split of a folder of images; of a folder without splits, all of it.

    Arguments and errors are those of ``sources.open_split``.
    """
    _check_folder(root)
    whole = split == "auto" and not _has_splits(root)
    folder = root if whole else _split_folder(root, "eval_split", split, EVAL_SPLITS)
    found = _list_images(folder)
    records = FolderRecords(found.paths, found.labels)
    return Split(records, found.class_names, _notes(root, found.others))


def _check_folder(root: Path) -> None:
    if not root.is_dir():
        raise InputError(f"dataset: no such folder: {root.absolute()}; {_FOLDER_LAYOUT}")


def _has_splits(root: Path) -> bool:
    """Return whether there is a folder ``train`` of class folders; of images, it is a class."""
    train = _find(root, _TRAIN)
    return train is not None and bool(subfolders(train) or not any(walk_images(train)))


def _hold_out(root: Path) -> Dataset:
    """Open a folder without splits: every fifth image of each class is for evaluation."""
    found = _list_images(root)
    held_out = _every_fifth_of_each_class(found.labels)
    if not held_out.any():
        raise InputError(
            f"dataset: no class folder of {root.absolute()} has the {_HOLD_OUT} images it takes "
            f"to hold one out for evaluation; {_FOLDER_LAYOUT}"
        )

    def records(chosen: np.ndarray) -> FolderRecords:
        paths = [found.paths[i] for i in np.flatnonzero(chosen)]
        return FolderRecords(paths, found.labels[chosen])

    notes = _notes(root, found.others)
    return Dataset(records(~held_out), records(held_out), found.class_names, notes)


def _notes(
    root: Path, others: collections.Counter[str], unused: Sequence[str] = ()
) -> tuple[str, ...]:
    """Lines about files and folders that are left out."""
    notes = (f"{root}: folders left out: {', '.join(unused)}",) if unused else ()
    return notes + left_out(root, others)


def left_out(where: object, others: collections.Counter[str]) -> tuple[str, ...]:
    """Return a line about files that ``walk_images`` counted, if there are any."""
    if not others:
        return ()
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(others.items()))
    return (f"{where}: {others.total()} files left out: {kinds}",)


def _split_folder(root: Path, field: str, split: str, auto: tuple[str, ...]) -> Path:
    """Return the subfolder of a split: the named one, or the first of ``auto`` that exists."""
    names = auto if split == "auto" else (split,)
    if found := _find(root, names):
        return found
    raise InputError(
        f"{field} {split!r}: no folder {' or '.join(map(repr, names))} in {root}, "
        f"which has {subfolders(root)}; {_FOLDER_LAYOUT}"
    )


def _find(root: Path, names: tuple[str, ...]) -> Path | None:
    """The first folder of one of the names, in this case or else in any."""
    found = subfolders(root)
    for name in names:
        for match in (name, *(other for other in found if other.lower() == name.lower())):
            if match and (root / match).is_dir():
                return root / match
    return None


def _list_images(folder: Path, class_names: tuple[str, ...] | None = None) -> _Listing:
    """List the images of the class folders in a folder, sorted, with int32 labels.

    ``class_names`` are those of the training split; None takes them from this folder.
    """
    found = subfolders(folder)
    if not found:
        raise InputError(f"dataset: no class folders in {folder.absolute()}; {_FOLDER_LAYOUT}")
    class_names = tuple(found) if class_names is None else class_names
    unknown = sorted(set(found) - set(class_names))
    if unknown:
        raise InputError(
            f"dataset: {folder} has classes missing from training: {', '.join(unknown)}"
        )
    paths: list[str] = []
    counts: list[int] = []
    others: collections.Counter[str] = collections.Counter()
    if loose := sum(_is_image(entry.name) for entry in os.scandir(folder) if entry.is_file()):
        others["outside the class folders"] = loose
    for name in found:
        images = list(walk_images(folder / name, others))
        if not images:
            raise InputError(
                f"dataset: no images in the class folder {folder / name}; {_FOLDER_LAYOUT}"
            )
        paths += images
        counts.append(len(images))
    labels = np.repeat([class_names.index(name) for name in found], counts).astype(np.int32)
    return _Listing(paths, labels, class_names, others)


def walk_images(folder: Path, others: collections.Counter[str] | None = None) -> Iterator[str]:
    """Yield the images of a folder and its subfolders, in the order of torchvision.

    Links are followed, hidden files and folders are not listed, other files are counted.
    """
    seen: set[str] = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        seen.add(os.path.realpath(root))
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and os.path.realpath(f"{root}/{name}") not in seen
        )
        for name in sorted(files):
            if _is_image(name):
                yield f"{root}/{name}"
            elif others is not None and not name.startswith("."):
                others[_suffix(name) or "without suffix"] += 1


def _is_image(name: str) -> bool:
    return not name.startswith(".") and _suffix(name) in image_suffixes()


def _suffix(name: str) -> str:
    """The suffix in lower case; by hand, since there may be a million files."""
    _, dot, suffix = name.rpartition(".")
    return dot + suffix.lower() if dot else ""


def subfolders(folder: Path) -> list[str]:
    """Return the names of the visible subfolders, sorted."""
    with os.scandir(folder) as entries:
        return sorted(
            entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")
        )


def _every_fifth_of_each_class(labels: np.ndarray) -> np.ndarray:
    """Mark the fifth, tenth, ... image of each class in sorted labels; no class gets empty."""
    position_in_class = np.arange(len(labels)) - np.searchsorted(labels, labels)
    return position_in_class % _HOLD_OUT == _HOLD_OUT - 1
