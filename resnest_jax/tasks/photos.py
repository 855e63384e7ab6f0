"""Find and read the images that a command is given."""

from collections.abc import Sequence
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
