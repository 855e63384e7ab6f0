"""Boxes of images from an annotation file, as records and as the truth of an evaluation."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from resnest_jax.data.sources.coco_file import CocoFile, Entry
from resnest_jax.data.sources.coco_masks import read_mask
from resnest_jax.errors import InputError
from resnest_jax.files import read_file

LEAST_SIDE = 1e-5  # pixels, as in detectron2: smaller boxes are empty
_UNMASKED = "objects whose segmentation has no pixel and no polygon of three points"
ROUNDING = 1.0  # pixels: boxes that reach over the border by less are not worth a word


class BoxRecords:
    """Records of encoded images with their boxes.

    ``{"image": bytes, "boxes": float32 (N, 4), "classes": int32 (N,), "size": (height, width),
    "index": int, "key": path}``; boxes are (left, top, right, bottom) in pixels, inside the image.
    With masks there is ``"segmentations"``, of each box, see ``instances.Segmentation``.

    Args:
      paths: of the images.
      sizes: heights and widths, int32 (R, 2), as the annotation file has them.
      boxes: left, top, right, bottom and class of the objects of each image, float64 (N, 5).
      masks: JSON of the segmentations of each image; None: no masks.

    Attributes:
      sizes: the argument.
      counts: number of boxes of each record, int64 (R,).
    """

    def __init__(
        self,
        paths: Sequence[str],
        sizes: np.ndarray,
        boxes: Sequence[np.ndarray],
        masks: Sequence[bytes] | None = None,
    ):
        self.sizes = sizes
        self.counts = np.array([len(b) for b in boxes], np.int64)
        self._paths = list(paths)
        # A few arrays instead of many: workers get them pickled.
        rows = np.concatenate([np.zeros((0, 5)), *boxes])
        self._boxes, self._classes = rows[:, :4].astype(np.float32), rows[:, 4].astype(np.int32)
        self._ends = np.cumsum(self.counts)
        self._masks = masks

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path = self._paths[index]
        end = self._ends[index]
        own = slice(end - self.counts[index], end)
        return {
            "image": read_file("image", path),
            "boxes": self._boxes[own],
            "classes": self._classes[own],
            "size": tuple(self.sizes[index].tolist()),
            "index": index,
            "key": path,
            **({"segmentations": json.loads(self._masks[index])} if self._masks else {}),
        }

    def key(self, index: int) -> str:
        """Return the path of the image."""
        return self._paths[index]


class GroundTruth(NamedTuple):
    """What the detections of an evaluation are compared with.

    Attributes:
      content: images, annotations and categories as ``pycocotools`` takes them, with crowd regions;
        with masks each annotation has a ``segmentation``.
      image_ids: id of the image of each record.
      category_ids: id of the category of each class.
    """

    content: dict[str, list[Entry]]
    image_ids: tuple[int, ...]
    category_ids: tuple[int, ...]


def make_records(
    file: CocoFile,
    paths: Mapping[int, str],
    labels: Mapping[int, int],
    notes: list[str],
    *,
    training: bool,
    masks: bool = False,
) -> BoxRecords:
    """Return the records of a split; ``notes`` gets lines about boxes and images left out.

    Args:
      paths: of the images that are there, by their ids.
      labels: class of each category.
      training: leave out images without a box.
      masks: the records have masks; leave out objects without one.

    Raises:
      InputError: if there is no box in the split, or all are fractions of the image, or if a mask
        is missing or broken.
    """
    images = [image for image in file.images if image["id"] in paths]
    read = [_read_objects(file, image, labels, masks) for image in images]
    boxes = [objects.boxes for objects in read]
    if not any(map(len, boxes)):
        raise InputError(f"{file.path} has no box in any of its {len(images)} images")
    if max(b[:, :4].max() for b in boxes if len(b)) <= 1:
        raise InputError(f"{file.path}: its boxes are fractions of the images; expected pixels")
    used = [i for i, b in enumerate(boxes) if len(b) or not training]
    _add_notes(file, notes, training, read, unused=len(images) - len(used))
    sizes = [(int(images[i]["height"]), int(images[i]["width"])) for i in used]
    return BoxRecords(
        [paths[images[i]["id"]] for i in used],
        np.array(sizes, np.int32),
        [boxes[i] for i in used],
        [read[i].masks for i in used] if masks else None,
    )


class _Objects(NamedTuple):
    """The objects of an image that records have.

    Attributes:
      boxes, masks: see ``BoxRecords``.
      cut: number of boxes that reached over the border.
      empty, unmasked: number of objects that are left out, without a box or a mask.
    """

    boxes: np.ndarray
    masks: bytes
    cut: int
    empty: int
    unmasked: int


def _read_objects(file: CocoFile, image: Entry, labels: Mapping[int, int], masks: bool) -> _Objects:
    objects = [o for o in file.objects[image["id"]] if not o["iscrowd"]]
    whole = np.array([o["bbox"] for o in objects], np.float64).reshape(-1, 4)
    whole[:, 2:] += whole[:, :2]
    inside = np.clip(whole, 0, (image["width"], image["height"]) * 2)
    usable = np.all(inside[:, 2:] - inside[:, :2] > LEAST_SIDE, 1)
    cut = np.sum(usable & np.any(np.abs(inside - whole) > ROUNDING, 1))
    empty, found = np.sum(~usable), {}
    if masks:
        found = {i: read_mask(file, image, objects[i]) for i in np.flatnonzero(usable)}
        usable[[i for i, mask in found.items() if mask is None]] = False
    kept = [mask for mask in found.values() if mask is not None]
    classes = np.array([labels[o["category_id"]] for o in objects]).reshape(-1, 1)
    return _Objects(
        np.hstack([inside, classes])[usable],
        json.dumps(kept, separators=(",", ":")).encode() if masks else b"",
        int(cut),
        int(empty),
        len(found) - len(kept),
    )


def ground_truth(
    file: CocoFile,
    image_ids: Sequence[int],
    category_ids: Sequence[int],
    notes: list[str],
    *,
    masks: bool = False,
) -> GroundTruth:
    """Return the truth of the images of some ids, with the boxes as they are in the file.

    Args:
      masks: the truth has masks; ``notes`` gets a line about objects without one.

    Raises:
      InputError: if a mask is missing or broken.
    """
    fields = ("image_id", "category_id", "bbox", "area", "iscrowd")
    by_id = {image["id"]: image for image in file.images}
    annotations, unmasked = [], 0
    for entry in (o for i in image_ids for o in file.objects[i]):
        # Numbered from 1: to pycocotools 0 means no match.
        kept = {"id": len(annotations) + 1} | {field: entry[field] for field in fields}
        if masks:
            image = by_id[entry["image_id"]]
            size = [int(image["height"]), int(image["width"])]
            mask = read_mask(file, image, entry)
            unmasked += mask is None
            kept["segmentation"] = mask or {"size": size, "counts": [size[0] * size[1]]}
        annotations.append(kept)
    if unmasked:
        notes.append(f"{file.path}: {unmasked} {_UNMASKED}, which count as not found")
    content = {
        "images": [{key: by_id[i][key] for key in ("id", "height", "width")} for i in image_ids],
        "annotations": annotations,
        "categories": [{"id": i} for i in category_ids],
    }
    return GroundTruth(content, tuple(image_ids), tuple(category_ids))


def _add_notes(
    file: CocoFile, notes: list[str], training: bool, read: Sequence[_Objects], unused: int
) -> None:
    objects = [o for objects in file.objects.values() for o in objects]
    crowds = sum(bool(o["iscrowd"]) for o in objects)
    cut, empty, unmasked = (
        sum(getattr(r, field) for r in read) for field in ("cut", "empty", "unmasked")
    )
    most = ", most of all: are they (left, top, width, height)?" if 2 * cut > len(objects) else ""
    lines = {
        "annotations of images that it does not list, left out": file.strays,
        "boxes of no size or outside their image, "
        + ("left out" if training else "which count as not found"): empty,
        "boxes reach over the border of their image"
        + (" and are cut there" if training else "")
        + most: cut,
        "crowd regions, "
        + ("left out" if training else "in which detections do not count"): crowds,
        f"{_UNMASKED}, left out": unmasked,
        "images without a box, left out": unused,
    }
    notes += [f"{file.path}: {count} {line}" for line, count in lines.items() if count]
