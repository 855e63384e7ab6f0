"""Write images with named boxes as annotation files in COCO's form."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from resnest_jax.data.sources.coco_file import HOLD_OUT
from resnest_jax.errors import InputError
from resnest_jax.files import make_folder, write_atomic, writing

NO_SPLITS = "{} does not have two splits: every fifth image is for evaluation"


class Object(NamedTuple):
    """An object: its class, its box and whether it is neither trained on nor scored.

    The box is (left, top, width, height) in pixels, edges continuous.
    """

    name: str
    box: tuple[float, float, float, float]
    ignored: bool = False


class Photo(NamedTuple):
    """An image file, its (width, height) and its objects."""

    path: Path
    size: tuple[int, int]
    objects: list[Object]


class Found(NamedTuple):
    """The images of each split, the names of the classes in their order, and what was left out."""

    splits: dict[str, list[Photo]]
    class_names: list[str]
    notes: list[str]


def hold_out(photos: Sequence[Photo]) -> dict[str, list[Photo]]:
    """Return the splits ``train`` and ``val``; every fifth image is in the second."""
    held_out = [*photos[HOLD_OUT - 1 :: HOLD_OUT]]
    return {"train": [p for i, p in enumerate(photos, start=1) if i % HOLD_OUT], "val": held_out}


def write(found: Found, output: Path, *, overwrite: bool = False) -> list[str]:
    """Write ``annotations/instances_SPLIT.json`` in the output; return a line about each.

    Images stay where they are; the files have their paths relative to the output.

    Raises:
      InputError: if there is no object, or a file is there already or cannot be written.
    """
    if not any(photo.objects for photos in found.splits.values() for photo in photos):
        raise InputError("--input: there are no objects in any of its images")
    folder = output / "annotations"
    paths = {split: folder / f"instances_{split}.json" for split in found.splits}
    if not overwrite and (there := [str(path) for path in paths.values() if path.exists()]):
        raise InputError(f"--output: {there[0]} is there already; use --overwrite to replace it")
    make_folder("--output", folder)
    lines, first_image, first_object = [], 1, 1
    for split, photos in found.splits.items():
        content = _content(photos, found.class_names, output, first_image, first_object)
        with writing("--output", paths[split]):
            write_atomic(paths[split], json.dumps(content).encode())
        first_image += len(photos)
        first_object += len(content["annotations"])
        objects = f"{len(content['annotations'])} objects"
        lines.append(f"{paths[split]}: {len(photos)} images, {objects}")
    return lines


def _content(
    photos: Sequence[Photo],
    class_names: Sequence[str],
    output: Path,
    first_image: int,
    first_object: int,
) -> Mapping[str, list[dict[str, Any]]]:
    ids = {name: i for i, name in enumerate(class_names, start=1)}
    images, annotations = [], []
    for image_id, photo in enumerate(photos, start=first_image):
        file_name = Path(os.path.relpath(photo.path, output)).as_posix()
        width, height = photo.size
        images.append({"id": image_id, "file_name": file_name, "width": width, "height": height})
        for name, box, ignored in photo.objects:
            annotations.append(
                {
                    "id": first_object + len(annotations),
                    "image_id": image_id,
                    "category_id": ids[name],
                    "bbox": list(box),
                    "area": box[2] * box[3],
                    "iscrowd": int(ignored),
                    "segmentation": [],
                }
            )
    categories = [{"id": i, "name": name, "supercategory": ""} for name, i in ids.items()]
    return {"images": images, "annotations": annotations, "categories": categories}
