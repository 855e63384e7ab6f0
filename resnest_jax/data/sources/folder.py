"""Folders of labelled images."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from resnest_jax.data.sources.records import Dataset
from resnest_jax.errors import InputError

_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
_FOLDER_LAYOUT = (
    "expected PATH/train/CLASS/*.jpg and PATH/val/CLASS/*.jpg, or PATH/CLASS/*.jpg (jpg, jpeg, png)"
)
# Without an evaluation split, every fifth image of each class is held out.
_HOLD_OUT = 5


class FolderRecords:
    """Records of image files: one list of paths and one array of labels."""

    def __init__(self, paths: Sequence[str], labels: np.ndarray):
        self._paths = paths
        self._labels = labels

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path = self._paths[index]
        try:
            image = Path(path).read_bytes()
        except OSError as error:
            raise InputError(f"cannot read the image {path}: {error.strerror}") from error
        return {"image": image, "label": int(self._labels[index]), "key": path}

    def key(self, index: int) -> str:
        """Return the path."""
        return self._paths[index]


def open_folder(root: Path, train_split: str, eval_split: str) -> Dataset:
    """Open a folder of images, with or without one folder per split.

    Arguments and errors are those of ``sources.open_dataset``.
    """
    if not root.is_dir():
        raise InputError(f"no such folder: {root}; {_FOLDER_LAYOUT}")
    if train_split == eval_split == "auto" and not (root / "train").is_dir():
        paths, labels, class_names = _list_images(root)
        held_out = _every_fifth_of_each_class(labels)
        if not held_out.any():
            raise InputError(
                f"no class folder of {root} has the {_HOLD_OUT} images needed to hold one out for "
                f"evaluation; {_FOLDER_LAYOUT}"
            )
        return Dataset(
            train=FolderRecords([paths[i] for i in np.flatnonzero(~held_out)], labels[~held_out]),
            eval=FolderRecords([paths[i] for i in np.flatnonzero(held_out)], labels[held_out]),
            class_names=class_names,
        )
    train_paths, train_labels, class_names = _list_images(
        _split_folder(root, "train_split", train_split, ("train",))
    )
    eval_paths, eval_labels, _ = _list_images(
        _split_folder(root, "eval_split", eval_split, ("validation", "val", "test")), class_names
    )
    return Dataset(
        train=FolderRecords(train_paths, train_labels),
        eval=FolderRecords(eval_paths, eval_labels),
        class_names=class_names,
    )


def _split_folder(root: Path, field: str, split: str, auto: tuple[str, ...]) -> Path:
    """Return the subfolder of a split: the named one, or the first of ``auto`` that exists."""
    names = auto if split == "auto" else (split,)
    for name in names:
        if name and (root / name).is_dir():
            return root / name
    raise InputError(
        f"{field} {split!r}: no folder {' or '.join(map(repr, names))} in {root}, "
        f"which has {_subfolders(root)}; {_FOLDER_LAYOUT}"
    )


def _list_images(
    folder: Path, class_names: tuple[str, ...] | None = None
) -> tuple[list[str], np.ndarray, tuple[str, ...]]:
    """List the images of the class folders in a folder, sorted, as paths and int32 labels.

    ``class_names`` are those of the training split; None takes them from this folder.
    """
    found = _subfolders(folder)
    if not found:
        raise InputError(f"no class folders in {folder}; {_FOLDER_LAYOUT}")
    class_names = tuple(found) if class_names is None else class_names
    unknown = sorted(set(found) - set(class_names))
    if unknown:
        raise InputError(f"{folder} has classes missing from training: {', '.join(unknown)}")
    paths, counts = [], []
    for name in found:
        with os.scandir(folder / name) as entries:
            images = sorted(
                entry.path
                for entry in entries
                if entry.name.lower().endswith(_IMAGE_SUFFIXES) and not entry.name.startswith(".")
            )
        if not images:
            raise InputError(f"no images in the class folder {folder / name}; {_FOLDER_LAYOUT}")
        paths += images
        counts.append(len(images))
    labels = np.repeat([class_names.index(name) for name in found], counts).astype(np.int32)
    return paths, labels, class_names


def _subfolders(folder: Path) -> list[str]:
    """Return the names of the visible subfolders, sorted."""
    with os.scandir(folder) as entries:
        return sorted(
            entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")
        )


def _every_fifth_of_each_class(labels: np.ndarray) -> np.ndarray:
    """Mark the fifth, tenth, ... image of each class in sorted labels; no class gets empty."""
    position_in_class = np.arange(len(labels)) - np.searchsorted(labels, labels)
    return position_in_class % _HOLD_OUT == _HOLD_OUT - 1
