"""The built-in scenes as files: label maps as ADE20K has them, or objects in COCO's form."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from resnest_jax.data.builtin import scenes
from resnest_jax.data.instances import encode_mask, mask_box
from resnest_jax.data.label_tables import published_table
from resnest_jax.data.sources import mask_classes
from resnest_jax.files import local_path, writing
from resnest_jax.lock import write_once

NAME = "scenes"


def folder() -> Path:
    """Return the folder of the scenes with label maps; write it the first time.

    It is in the directory of TFDS, and has ``{images,annotations}/{training,validation}`` and
    ``classes.txt``: an example of a user's own data set too.

    Raises:
      InputError: if it cannot be written.
    """
    return _written(NAME, _write_label_maps)


def folder_with_objects() -> Path:
    """Return the folder of the scenes with boxes and masks of their digits, as ``folder`` does.

    It has ``annotations/instances_{training,validation}.json`` and ``{training,validation}/``.
    """
    return _written(f"{NAME}_coco", _write_objects)


def _written(name: str, write: Callable[[Path], None]) -> Path:
    # Importing TFDS to ask it would take seconds.
    directory = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    root = local_path("TFDS_DATA_DIR", directory) / name / scenes.VERSION
    with writing(f"dataset {NAME}", root):
        write_once(root, write)
    return root


def _write_label_maps(root: Path) -> None:
    table = published_table(NAME)
    palette = np.array(table.palette, np.uint8).tobytes()
    lines = [f"{value} {name}\n" for value, name in zip(table.values, table.names, strict=True)]
    (root / mask_classes.FILE).write_text("".join(lines))
    for split in scenes.SCENES:
        images, label_maps = root / "images" / split, root / "annotations" / split
        images.mkdir(parents=True)
        label_maps.mkdir(parents=True)
        for index, scene in enumerate(scenes.scenes(split)):
            _save_image(scene, images / f"{index:04}.jpg")
            label_map = Image.fromarray(_label_map(scene, table.names.index("ground")))
            label_map.putpalette(palette)  # the values stay
            label_map.save(label_maps / f"{index:04}.png")


def _label_map(scene: scenes.Scene, ground: int) -> np.ndarray:
    """Return the digit that each pixel shows, or the value of the ground."""
    label_map = np.full(scene.image.shape[:2], ground, np.uint8)
    for digit in scene.digits:
        label_map[digit.mask] = digit.value
    return label_map


def _write_objects(root: Path) -> None:
    (root / "annotations").mkdir()
    names = published_table(NAME).names[:10]
    for split in scenes.SCENES:
        (root / split).mkdir()
        images: list[dict[str, Any]] = []
        objects: list[dict[str, Any]] = []
        for index, scene in enumerate(scenes.scenes(split)):
            name = f"{index:04}.jpg"
            _save_image(scene, root / split / name)
            height, width = scene.image.shape[:2]
            images.append({"id": index, "file_name": name, "height": height, "width": width})
            for digit in scene.digits:
                objects.append(
                    {
                        "id": len(objects) + 1,
                        "image_id": index,
                        "category_id": digit.value,
                        "bbox": _box(digit.mask),
                        "segmentation": encode_mask(digit.mask),
                        "area": int(digit.mask.sum()),
                        "iscrowd": 0,
                    }
                )
        categories = [{"id": value, "name": name} for value, name in enumerate(names)]
        content = {"images": images, "annotations": objects, "categories": categories}
        path = root / "annotations" / f"instances_{split}.json"
        path.write_text(json.dumps(content, indent=0))


def _box(mask: np.ndarray) -> list[int]:
    """Return left, top, width and height of the smallest box around a mask."""
    left, top, right, bottom = mask_box(mask)
    return [left, top, right - left, bottom - top]


def _save_image(scene: scenes.Scene, path: Path) -> None:
    Image.fromarray(scene.image).save(path, quality=95)
