"""Find and read the images that a command is given."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from resnest_jax.data.decode import decode
from resnest_jax.errors import InputError
from resnest_jax.files import local_path, read_file


def find_images(files: Sequence[str]) -> list[Path]:
    """List the given files, and the visible files in given folders, sorted, without subfolders.

    Raises:
      InputError: if there are none, or a folder cannot be read.
    """
    if not files:
        raise InputError("no images are given; expected IMAGE_OR_FOLDER... as arguments")
    paths: list[Path] = []
    for path in (local_path("image", file) for file in files):
        if not path.is_dir():
            paths.append(path)
            continue
        try:
            found = [p for p in path.iterdir() if p.is_file() and not p.name.startswith(".")]
        except OSError as error:
            raise InputError(f"cannot read the folder {path}: {error.strerror}") from None
        if not found:
            raise InputError(f"the folder {path} holds no files; give one with images in it")
        paths += sorted(found)
    return list(dict.fromkeys(paths))


def read_image(path: Path, channels: int = 3) -> np.ndarray:
    """Read a file as uint8 (H, W, channels), as ``data.decode.decode`` does in training.

    Raises:
      InputError: if it is not a whole image.
    """
    return decode({"image": read_file("image", path), "key": path}, channels)


def readable_photos(paths: Sequence[Path]) -> Iterator[tuple[Path, np.ndarray]]:
    """Yield path and pixels of each file; print the errors of others on stderr."""
    for path in paths:
        try:
            photo = read_image(path)
        except InputError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            continue
        yield path, photo


def output_names(paths: Sequence[Path]) -> dict[Path, str]:
    """Return the start of the names of each image's files: its name, without suffix if unique.

    Raises:
      InputError: if two are the same.
    """
    stems = [path.stem for path in paths]
    names = {p: p.stem if stems.count(p.stem) == 1 else p.name for p in paths}
    if len(set(names.values())) < len(names):
        raise InputError("several images have the same name: give one folder at a time")
    return names
