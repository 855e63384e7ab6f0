"""Masks of objects in an annotation file of COCO's form."""

from resnest_jax.data.instances import Segmentation, usable_part
from resnest_jax.data.sources.coco_file import CocoFile, Entry
from resnest_jax.errors import InputError


def read_mask(file: CocoFile, image: Entry, entry: Entry) -> Segmentation | None:
    """Return the segmentation of an object; None if it has no pixel and no polygon of 3 points.

    Raises:
      InputError: if there is none, or if it is broken.
    """
    where = f"{file.path}: annotation {entry.get('id', 'without id')} of {image['file_name']}"
    if not entry.get("segmentation"):
        raise InputError(
            f"{where} has no segmentation, which a model with masks needs; without it use "
            "model.name 'faster_rcnn' or 'cascade_rcnn'"
        )
    try:
        return usable_part(entry["segmentation"], (int(image["height"]), int(image["width"])))
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def has_masks(file: CocoFile) -> bool:
    """Return whether any object has a segmentation."""
    return any(o.get("segmentation") for objects in file.objects.values() for o in objects)
