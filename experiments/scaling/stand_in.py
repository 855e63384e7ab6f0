"""Tiny data sets with the classes of published ones: to compile a recipe without its data.

A compiled step depends on the number of classes, not on the images: all are one grey image.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from ml_collections import ConfigDict

from resnest_jax.errors import InputError

SIDES = (40, 60)  # height and width of the image
IMAGENET_CLASSES, COCO_CLASSES = 1000, 80
HELD_OUT = 8  # at least


def use(config: ConfigDict, root: Path, images: int) -> None:
    """Write a data set of at least so many training images; make it that of the config.

    Raises:
      InputError: if there is none for the config's.
    """
    kind = config.dataset.partition(":")[0]
    if kind not in WRITERS:
        raise InputError(
            f"--stand_in has no data set in place of {config.dataset!r}, only of "
            f"{', '.join(WRITERS)}"
        )
    config.train_split = config.eval_split = "auto"
    config.dataset = WRITERS[kind](root, images)


def _folder(root: Path, images: int) -> str:
    each = -(-images // IMAGENET_CLASSES)
    names = [f"class{i:04}/{j}.png" for i in range(IMAGENET_CLASSES) for j in range(each)]
    _link(root / "train", names)
    _link(root / "val", names[::each])
    return f"folder:{root}"


def _label_maps(root: Path, images: int) -> str:
    for split, count in (("training", images), ("validation", HELD_OUT)):
        names = [f"{i}.png" for i in range(count)]
        _link(root / "images" / split, names)
        _link(root / "annotations" / split, names, label_map=True)
    return f"ade20k:{root}"


def _boxes(root: Path, images: int) -> str:
    height, width = SIDES
    left, top, right, bottom = 8, 8, 24, 24
    corners = [left, top, right, top, right, bottom, left, bottom]
    box = {"bbox": [left, top, right - left, bottom - top], "area": (right - left) * (bottom - top)}
    for split, count in (("train", images), ("val", HELD_OUT)):
        names = [f"{i}.png" for i in range(count)]
        _link(root / split, names)
        content = {
            "images": [
                {"id": i, "file_name": name, "height": height, "width": width}
                for i, name in enumerate(names)
            ],
            "annotations": [
                {"id": i, "image_id": i, "category_id": 1, "iscrowd": 0, "segmentation": [corners]}
                | box
                for i in range(count)
            ],
            "categories": [{"id": i + 1, "name": f"class {i}"} for i in range(COCO_CLASSES)],
        }
        (root / f"{split}.json").write_text(json.dumps(content))
    return f"coco:{root}"


def _link(folder: Path, names: list[str], *, label_map: bool = False) -> None:
    """Write one image, of class 1 if it is a label map, under many names."""
    shape = SIDES if label_map else (*SIDES, 3)
    first = folder / names[0]
    first.parent.mkdir(parents=True)
    cv2.imwrite(str(first), np.full(shape, 1, np.uint8))
    for name in names[1:]:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        os.link(first, path)


WRITERS: dict[str, Callable[[Path, int], str]] = {
    "imagenet2012": _folder,
    "ade20k": _label_maps,
    "coco": _boxes,
}
