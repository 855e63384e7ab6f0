"""Find the image and the label map of each name, and read them."""

import collections
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from resnest_jax.data.label_maps import decode_label_map
from resnest_jax.data.sources.folder import left_out, walk_images
from resnest_jax.errors import InputError
from resnest_jax.files import read_file

Pairs = list[tuple[str, str]]  # paths of an image and its label map
MAT = ".mat"  # label maps of the augmented VOC
_SHOWN = 3


class _Found(NamedTuple):
    """Files of a folder by name."""

    folder: Path
    paths: dict[str, str]


def folder_pairs(
    images: Path, label_maps: Path, endings: tuple[str, str] = ("", "")
) -> tuple[Pairs, tuple[str, ...]]:
    """Pair the files of two folders, and of the same subfolders, by their names without suffix.

    Args:
      images, label_maps: the folders.
      endings: ends of the names, before the suffix, that are no part of what they share; files
        without are left out.

    Returns:
      The pairs in the order of their names, and a line about files that are not images.

    Raises:
      InputError: if a folder is missing, an image has no label map or the reverse, or if two files
        have the same name; lists the first ones.
    """
    others: collections.Counter[str] = collections.Counter()
    found = _walk(images, endings[0], others), _walk(label_maps, endings[1], others)
    pairs = _pair(sorted({*found[0].paths, *found[1].paths}), *found)
    return pairs, left_out(f"{images}, {label_maps}", others)


def listed_pairs(
    listed: Path, images: Path, label_maps: Path, labels_suffix: str = ".png"
) -> Pairs:
    """Pair the JPEG files and label maps whose names a text file lists, one per line.

    Raises:
      InputError: if a folder or file is missing, or if a name is listed twice.
    """
    names = listed.read_text().split()
    repeated = [name for name, count in collections.Counter(names).items() if count > 1]
    if repeated:
        raise InputError(f"{listed} has names more than once: {some(repeated)}")
    return _pair(names, _glob(images, ".jpg"), _glob(label_maps, labels_suffix))


def list_names(folder: Path) -> list[str]:
    """Return the names, without suffix, of the text files in a folder."""
    return sorted(path.stem for path in folder.glob("*.txt"))


def read_label_map(path: str) -> np.ndarray:
    """Read a label map, see ``label_maps.decode_label_map``."""
    return decode_label_map(read_file("label map", path), path)


def some(names: Sequence[str]) -> str:
    """Write the first names and the number of the others."""
    shown = ", ".join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"


def _walk(folder: Path, ending: str, others: collections.Counter[str]) -> _Found:
    """Find images in subfolders too; their names are the paths below the folder."""
    found: dict[str, str] = {}
    for path in walk_images(_existing(folder), others):
        name = path[len(str(folder)) + 1 :].rpartition(".")[0]
        if not name.endswith(ending):
            continue
        other = found.setdefault(name.removesuffix(ending), path)
        if other != path:
            raise InputError(f"{other} and {path} have the same name; remove one")
    return _Found(folder, found)


def _glob(folder: Path, suffix: str) -> _Found:
    paths = _existing(folder).glob(f"*{suffix}")
    return _Found(folder, {path.stem: str(path) for path in paths})


def _existing(folder: Path) -> Path:
    if not folder.is_dir():
        raise InputError(f"no such folder: {folder}")
    return folder


def _pair(names: Sequence[str], images: _Found, label_maps: _Found) -> Pairs:
    problems = []
    for what, found in (("label map", label_maps), ("image", images)):
        if missing := [name for name in names if name not in found.paths]:
            problems.append(f"{len(missing)} without {what} in {found.folder}: {some(missing)}")
    if problems:
        raise InputError("; ".join(problems))
    return [(images.paths[name], label_maps.paths[name]) for name in names]
