"""Read boxes from text files in the form of YOLO."""

import math
from pathlib import Path
from typing import Any

from resnest_jax.data.conversion.coco import NO_SPLITS, Found, Object, Photo, hold_out
from resnest_jax.data.decode import upright_size
from resnest_jax.data.sources.folder import subfolders, walk_images
from resnest_jax.errors import InputError, import_package, one_line
from resnest_jax.files import read_file

_LISTS = ("classes.txt", "obj.names")  # a name per line
_YAML = ("data.yaml", "dataset.yaml")  # names: a list, or a name by number
IMAGES, LABELS = "images", "labels"


def read_yolo(root: Path) -> Found:
    """Read the text files of a folder, one per image.

    The images of a split are in ``images/SPLIT`` or ``SPLIT/images``, their texts in the folder of
    the same path with ``labels`` for ``images``; without splits every fifth image of ``images`` is
    for evaluation. A line is ``CLASS X Y WIDTH HEIGHT``: the number of the class, and the centre
    and size of the box as fractions of the image. Images without a text have no objects. The names
    are in ``data.yaml``, ``classes.txt`` or ``obj.names``.

    Raises:
      InputError: if the names are missing, or a text is not of that form.
    """
    names = _names(root)
    folders = _split_folders(root)
    splits = {}
    for name, folder in folders.items():
        if photos := _photos(folder, names):
            splits[name] = photos
    if len(splits) > 1:
        return Found(splits, names, [])
    photos = _photos(root / IMAGES, names) if (root / IMAGES).is_dir() else []
    if not photos:
        raise InputError(f"{root} has no images in images/SPLIT, SPLIT/images or images")
    return Found(hold_out(photos), names, [NO_SPLITS.format(root)])


def _split_folders(root: Path) -> dict[str, Path]:
    images = root / IMAGES
    below = {name: images / name for name in subfolders(images)} if images.is_dir() else {}
    beside = {name: root / name / IMAGES for name in subfolders(root)}
    return below | {name: folder for name, folder in beside.items() if folder.is_dir()}


def _photos(folder: Path, names: list[str]) -> list[Photo]:
    return [_read(Path(path), names) for path in walk_images(folder)]


def _read(path: Path, names: list[str]) -> Photo:
    try:
        size = upright_size(path)
    except Exception as error:  # Pillow raises many kinds for broken files
        raise InputError(f"cannot read the image {path}: {one_line(error)}") from error
    parts = list(path.with_suffix(".txt").parts)
    parts[len(parts) - 1 - parts[::-1].index(IMAGES)] = LABELS
    text = Path(*parts)
    if not text.exists():
        return Photo(path, size, [])
    lines = read_file("text", text).decode(errors="replace").splitlines()
    return Photo(path, size, [_object(line, size, names, text) for line in lines if line.strip()])


def _object(line: str, size: tuple[int, int], names: list[str], path: Path) -> Object:
    try:
        label, *numbers = line.split()
        x, y, width, height = map(float, numbers)
        if int(label) < 0 or not all(map(math.isfinite, (x, y, width, height))):
            raise ValueError
        name = names[int(label)]
    except (ValueError, IndexError):
        raise InputError(
            f"{path}: {line.strip()[:60]!r} is not CLASS X Y WIDTH HEIGHT with a class from 0 to "
            f"{len(names) - 1}"
        ) from None
    box = ((x - width / 2) * size[0], (y - height / 2) * size[1], width * size[0], height * size[1])
    return Object(name, box)


def _names(root: Path) -> list[str]:
    """Return the names of the classes."""
    for path in (root / name for name in _YAML):
        if path.exists():
            return _from_yaml(path)
    for path in (folder / name for name in _LISTS for folder in (root, root / LABELS)):
        if path.exists():
            lines = read_file("list of names", path).decode("utf-8-sig", "replace").splitlines()
            return [line.strip() for line in lines if line.strip()]
    raise InputError(f"{root} has no names of classes: write classes.txt with one on each line")


def _from_yaml(path: Path) -> list[str]:
    yaml = import_package("yaml", "pyyaml")
    try:
        content: Any = yaml.safe_load(read_file("list of names", path))
        names = content["names"]
        if isinstance(names, dict):
            names = [names[i] for i in range(len(names))]
        if not names or not isinstance(names, list):
            raise TypeError("names must be a list")
        return [str(name) for name in names]
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise InputError(f"{path} has no list of names: {one_line(error)}") from error
