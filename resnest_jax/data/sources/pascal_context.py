"""Pascal Context: write its label maps from the annotation file, then read them."""

import collections
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from resnest_jax.data.sources.mask_pairs import Pairs, list_names, listed_pairs
from resnest_jax.errors import InputError, import_package, one_line
from resnest_jax.files import write_atomic, writing

ANNOTATIONS = "trainval_merged.json"
# Names that other code uses for the same files.
LABEL_MAPS, LISTS = "SegmentationClassContext", "ImageSets/SegmentationContext"
# Categories of the 59 classes in the annotation file, in the order of their labels.
# fmt: off
CATEGORIES = (
    2, 9, 18, 19, 22, 23, 25, 31, 33, 34, 44, 45, 46, 59, 65, 68, 72, 80, 85, 98, 104, 105, 113,
    115, 144, 158, 159, 162, 187, 189, 207, 220, 232, 258, 259, 260, 284, 295, 296, 308, 324, 326,
    347, 349, 354, 355, 360, 366, 368, 397, 415, 416, 420, 424, 427, 440, 445, 454, 458,
)
# fmt: on
_VALUES = {0: 0} | {category: value for value, category in enumerate(CATEGORIES, start=1)}


def splits(root: Path) -> list[str]:
    """Return the names of the splits; write the label maps and lists if they are not there."""
    if not list_names(root / LISTS):
        _convert(root)
    return list_names(root / LISTS)


def pairs(root: Path, split: str) -> tuple[Pairs, tuple[str, ...]]:
    """Return the images of a split and their label maps."""
    listed = root / LISTS / f"{split}.txt"
    return listed_pairs(listed, root / "JPEGImages", root / LABEL_MAPS), ()


def _convert(root: Path) -> None:
    """Write label maps (0 ignored, 1 to 59 the classes), then the lists, from the annotations."""
    segments, images = _read_annotations(root / ANNOTATIONS)
    lists: dict[str, list[str]] = collections.defaultdict(list)
    with writing("dataset", root / LABEL_MAPS):
        (root / LABEL_MAPS).mkdir(exist_ok=True)
        for image in tqdm(images, f"{root}: label maps"):
            name = Path(image["file_name"]).stem
            size = image["height"], image["width"]
            label_map = _draw(segments[image["image_id"]], size, name)
            write_atomic(root / LABEL_MAPS / f"{name}.png", _encode(label_map))
            lists[image["phase"]].append(name)
        (root / LISTS).mkdir(parents=True, exist_ok=True)
        for phase, names in lists.items():
            write_atomic(root / LISTS / f"{phase}.txt", "".join(f"{n}\n" for n in names).encode())


def _read_annotations(
    path: Path,
) -> tuple[Mapping[int, list[dict[str, Any]]], list[dict[str, Any]]]:
    """Return segments by image, and the images."""
    segments: dict[int, list[dict[str, Any]]] = collections.defaultdict(list)
    try:
        content = json.loads(path.read_bytes())
        for segment in content["annos_segmentation"]:
            segments[segment["image_id"]].append(segment)
        images = content["images"]
        if missing := {"file_name", "height", "width", "image_id", "phase"}.difference(*images[:1]):
            raise KeyError(f"no {sorted(missing)}")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, TypeError, LookupError) as error:
        raise InputError(f"{path} is not that of Pascal Context: {one_line(error)}") from error
    return segments, images


def _draw(segments: list[dict[str, Any]], size: tuple[int, int], name: str) -> np.ndarray:
    """Draw segments over each other, in the order of the file, to a label map."""
    coco = import_package("pycocotools.mask", "resnest_jax[detection]")
    label_map = np.zeros(size, np.uint8)
    for segment in segments:
        category = segment["category_id"]
        if category not in _VALUES:
            raise InputError(
                f"{ANNOTATIONS}: image {name} has the category {category}; expected 0 (ignored) or "
                f"one of the 59 from {CATEGORIES[0]} to {CATEGORIES[-1]}"
            )
        try:
            label_map[coco.decode(segment["segmentation"]) > 0] = _VALUES[category]
        except (IndexError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{ANNOTATIONS}: image {name} has a broken segment: {one_line(error)}"
            ) from error
    return label_map


def _encode(label_map: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(label_map).save(buffer, "PNG")
    return buffer.getvalue()
