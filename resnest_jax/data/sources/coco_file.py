"""Read and check an annotation file in COCO's form."""

import collections
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from resnest_jax.data.sources.mask_pairs import some
from resnest_jax.errors import InputError, one_line
from resnest_jax.files import read_file

HOLD_OUT = 5  # without an evaluation split every fifth image is for evaluation
_OF_LVIS = ("neg_category_ids", "not_exhaustive_category_ids")
Entry = dict[str, Any]


class CocoFile(NamedTuple):
    """The entries of an annotation file, checked.

    Attributes:
      path: the file.
      categories: by id, in the order of the ids.
      images: with ``id``, ``file_name``, ``width`` and ``height``.
      objects: those of each image, by its id; each with ``bbox``, ``category_id``, ``iscrowd``,
        ``area`` and what else the file has.
      strays: number of objects whose image is not in the file.
    """

    path: Path
    categories: dict[int, Entry]
    images: list[Entry]
    objects: Mapping[int, list[Entry]]
    strays: int

    def used(self) -> set[int]:
        """Return the ids of the categories that objects have."""
        return {o["category_id"] for objects in self.objects.values() for o in objects}


class _Field(NamedTuple):
    """A field of an entry: whether a value is right, and what is right in words."""

    is_valid: Callable[[Any], bool]
    expected: str
    optional: bool = False
    default: Any = None  # of an optional field


def read_coco(path: Path) -> CocoFile:
    """Read an annotation file.

    Raises:
      InputError: if it cannot be read, is not JSON in COCO's form, an entry has a field of the
        wrong type, an id is there twice, or an object has a category that is not in the file; or
        if it is LVIS's, whose images do not have all their objects.
    """
    content = _load(path)
    _refuse_lvis(path, content["images"])
    categories = _entries(path, content, "categories", _CATEGORY)
    images = _entries(path, content, "images", _IMAGE)
    objects: dict[int, list[Entry]] = {image["id"]: [] for image in images}
    by_id = {category["id"]: category for category in sorted(categories, key=lambda c: c["id"])}
    if not categories:
        raise InputError(f"{path} has no categories")
    strays, unknown = 0, set()
    for entry in _entries(path, content, "annotations", _OBJECT):
        if entry["category_id"] not in by_id:
            unknown.add(entry["category_id"])
        if entry["image_id"] not in objects:
            strays += 1
            continue
        if entry["area"] is None:
            entry["area"] = entry["bbox"][2] * entry["bbox"][3]
        objects[entry["image_id"]].append(entry)
    if unknown:
        raise InputError(
            f"{path}: annotations have category ids that its categories do not have: "
            f"{some(sorted(map(str, unknown)))}"
        )
    return CocoFile(path, by_id, images, objects, strays)


def hold_out(file: CocoFile) -> tuple[CocoFile, CocoFile]:
    """Return a part for training and one for evaluation: every fifth image.

    Raises:
      InputError: if there are fewer images.
    """
    held_out = file.images[HOLD_OUT - 1 :: HOLD_OUT]
    if not held_out:
        raise InputError(
            f"{file.path} has {len(file.images)} images; it takes {HOLD_OUT} to hold one out for "
            "evaluation"
        )
    ids = {image["id"] for image in held_out}
    train = [image for image in file.images if image["id"] not in ids]

    def part(images: list[Entry]) -> CocoFile:
        own = {image["id"]: file.objects[image["id"]] for image in images}
        return file._replace(images=images, objects=own)

    return part(train), part(held_out)._replace(strays=0)


def _load(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(read_file("annotation file", path))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not a JSON file: {one_line(error)}") from error
    lists = ("images", "annotations", "categories")
    has = content if isinstance(content, dict) else {}
    if missing := [name for name in lists if not isinstance(has.get(name), list)]:
        raise InputError(
            f"{path} is not an annotation file of COCO's form: it has no list of "
            f"{' and no list of '.join(missing)}"
        )
    return has


def _refuse_lvis(path: Path, images: Sequence[Any]) -> None:
    keys = {key for image in images if isinstance(image, dict) for key in image}
    if has := [key for key in _OF_LVIS if key in keys]:
        raise InputError(
            f"{path} is LVIS's: its images have {' and '.join(has)}, that is, not every object of "
            "every class; only files with all objects, as COCO's, are read"
        )


def _entries(
    path: Path, content: Mapping[str, Any], name: str, fields: Mapping[str, _Field]
) -> list[Entry]:
    """Return the entries of a list, with defaults; raise InputError for wrong or repeated ones."""
    wrong: list[str] = []
    entries = []
    for number, entry in enumerate(content[name]):
        if not isinstance(entry, dict):
            wrong.append(f"{name}[{number}] is {_shown(entry)}; expected an object")
            continue
        filled = {key: field.default for key, field in fields.items()} | entry
        for key, field in fields.items():
            if key not in entry and field.optional:
                continue
            if not field.is_valid(filled[key]):
                value = _shown(entry[key]) if key in entry else "missing"
                wrong.append(f"{key} of {name}[{number}] is {value}; expected {field.expected}")
        entries.append(filled)
    if wrong:
        more = f" ({len(wrong)} such errors)" if len(wrong) > 1 else ""
        raise InputError(f"{path}: {wrong[0]}{more}")
    if "id" in fields:
        counts = collections.Counter(entry["id"] for entry in entries)
        if repeated := [str(i) for i, count in counts.items() if count > 1]:
            raise InputError(f"{path}: {name} have ids more than once: {some(repeated)}")
    return entries


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _is_integer(value: Any) -> bool:
    return type(value) is int


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_side(value: Any) -> bool:
    return _is_number(value) and value >= 1 and value == int(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_box(value: Any) -> bool:
    return isinstance(value, Sequence) and len(value) == 4 and all(map(_is_number, value))


_ID = _Field(_is_integer, "an integer")
_SIDE = _Field(_is_side, "a positive number of pixels")
_TEXT = _Field(_is_text, "a text")
_CROWD = _Field(lambda value: value in (0, 1), "0 or 1", optional=True, default=0)
_AREA = _Field(lambda value: _is_number(value) and value >= 0, "a number of pixels", optional=True)
_CATEGORY = {"id": _ID, "name": _TEXT}
_IMAGE = {"id": _ID, "file_name": _TEXT, "width": _SIDE, "height": _SIDE}
_OBJECT = {
    "image_id": _ID,
    "category_id": _ID,
    "bbox": _Field(_is_box, "4 finite numbers: left, top, width, height"),
    "iscrowd": _CROWD,
    "area": _AREA,
}
