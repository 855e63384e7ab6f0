"""Transform decoded images with their boxes and masks to elements of a few sizes."""

import dataclasses
from typing import Any

import grain
import jax
import numpy as np

from resnest_jax.data import geometry
from resnest_jax.data.instances import mask_box, pack_masks, transform_mask
from resnest_jax.errors import InputError
from resnest_jax.tasks.detection.canvases import Canvases

SAMPLING = ("range", "choice")


@dataclasses.dataclass(frozen=True)
class EvalTransform(grain.transforms.Map):
    """Resize a decoded record to the short side of the canvases, and pad it to its canvas.

    ``{"image": uint8 (H, W, 3), "boxes": float32 (N, 4), "classes": int32 (N,), "index"}`` -> that
    of ``TrainTransform`` with the first boxes of the image, and

    - ``original_size``: int32 (2,), height and width before resizing;
    - ``index``: int32 (), of the record.
    """

    canvases: Canvases
    max_objects: int

    def map(self, element: dict[str, Any]) -> dict[str, np.ndarray]:
        size = element["image"].shape[:2]
        transform = _transform(self.canvases, size, self.canvases.short, flip=False)
        chosen = np.arange(min(len(element["boxes"]), self.max_objects))
        return _apply(transform, element, chosen, self.max_objects) | {
            "original_size": np.array(size, np.int32),
            "index": np.array(element["index"], np.int32),
        }


@dataclasses.dataclass(frozen=True)
class TrainTransform(grain.transforms.RandomMap):
    """Cut and resize a decoded record at random, mirror it, and pad it to its canvas (h, w).

    ``{"image": uint8 (H, W, 3), "boxes": float32 (N, 4), "classes": int32 (N,)}`` ->

    - ``image``: uint8 (h, w, 3), at the left top and black outside;
    - ``size``: int32 (2,), height and width of the image in it;
    - ``boxes``: float32 (max_objects, 4), left, top, right and bottom in it, zeros where there is
      no object; of more objects some are chosen at random. An object that is cut off has the box
      of the rest of its mask, without masks the rest of its box;
    - ``classes``: int32 (max_objects,);
    - ``object_valid``: bool (max_objects,), whether there is an object;
    - ``masks``: of a model with masks, from the record's ``segmentations``: uint8 (max_objects, h,
      w / 8), the pixels of each object as bits, see ``numpy.packbits``.

    Attributes:
      canvases: see ``canvases.Canvases``; they hold the images at the largest short side. With
        ``crop`` below 1 a part of each image with a random object is taken, and the sides of the
        part are random fractions from ``crop`` on.
      short_sides: the least and the largest short side in pixels, or all of them.
      sampling: ``range``: any integer from the least to the largest; ``choice``: one of them.
      flip: mirror half of the images.
      masks: whether the elements have masks.

    Raises:
      InputError: if a field is out of range.
    """

    canvases: Canvases
    max_objects: int
    short_sides: tuple[int, ...]
    sampling: str = "range"
    flip: bool = True
    masks: bool = False

    def __post_init__(self):
        check_sizes(self.short_sides, self.sampling, self.canvases.longest)
        if self.max_objects < 1:
            raise InputError(f"data.max_objects must be at least 1; got {self.max_objects}")

    @property
    def specs(self) -> tuple[dict[str, jax.ShapeDtypeStruct], ...]:
        """Shapes and dtypes of an element, of every canvas."""
        objects = {
            "size": jax.ShapeDtypeStruct((2,), np.int32),
            "boxes": jax.ShapeDtypeStruct((self.max_objects, 4), np.float32),
            "classes": jax.ShapeDtypeStruct((self.max_objects,), np.int32),
            "object_valid": jax.ShapeDtypeStruct((self.max_objects,), np.bool_),
        }

        def of_canvas(height: int, width: int) -> dict[str, jax.ShapeDtypeStruct]:
            spec = {"image": jax.ShapeDtypeStruct((height, width, 3), np.uint8)} | objects
            if self.masks:
                bits = (self.max_objects, height, width // 8)
                spec["masks"] = jax.ShapeDtypeStruct(bits, np.uint8)
            return spec

        return tuple(of_canvas(*canvas) for canvas in self.canvases.sizes)

    def random_map(
        self, element: dict[str, Any], rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        size, boxes = element["image"].shape[:2], element["boxes"]
        part, crop = None, self.canvases.crop
        if crop < 1 and len(boxes):
            part = geometry.draw_part(rng, size, crop, boxes[rng.integers(len(boxes))])
        if self.sampling == "range":
            short = int(rng.integers(min(self.short_sides), max(self.short_sides), endpoint=True))
        else:
            short = int(rng.choice(self.short_sides))
        flip = bool(self.flip and rng.random() < 0.5)
        transform = _transform(self.canvases, size, short, flip, part)
        x0, y0, x1, y1 = transform.apply_boxes(boxes, size).T
        chosen = np.flatnonzero((x1 > x0) & (y1 > y0))
        if len(chosen) > self.max_objects:
            chosen = np.sort(rng.choice(chosen, self.max_objects, replace=False))
        made = _apply(transform, element, chosen, self.max_objects)
        if self.masks:
            made |= _masks(transform, element, chosen, made)
        return made


def check_sizes(short_sides: tuple[int, ...], sampling: str, longest: int) -> None:
    """Raise InputError if the sizes of training images are out of range."""
    if sampling not in SAMPLING:
        raise InputError(f"data.short_side_sampling must be one of {SAMPLING}; got {sampling!r}")
    check_sides("data", "short_sides", short_sides, "long_side", longest)
    if sampling == "range" and len(short_sides) > 2:
        raise InputError(
            "data.short_sides must be the least and the largest for short_side_sampling 'range'; "
            f"got {short_sides}; to choose one of them, use 'choice'"
        )


def check_sides(
    section: str, name: str, sides: tuple[int, ...], longest_name: str, longest: int
) -> None:
    """Raise InputError if short sides in the config, or the limit of the long ones, are wrong."""
    if not sides or not all(type(side) is int and side > 0 for side in sides):
        raise InputError(
            f"{section}.{name} must be positive numbers of pixels, such as (640, 800); got {sides}"
        )
    if longest < max(sides):
        raise InputError(
            f"{section}.{longest_name} {longest} must not be less than {section}.{name} {sides}"
        )


def _transform(
    canvases: Canvases,
    size: geometry.Size,
    short: int,
    flip: bool,
    part: geometry.Part | None = None,
) -> geometry.Transform:
    resized = geometry.short_side(part.size if part else size, short, canvases.longest)
    return geometry.Transform(flip, resized, (0, 0), canvases.sizes[canvases.index(size)], part)


def _apply(
    transform: geometry.Transform, element: dict[str, Any], chosen: np.ndarray, max_objects: int
) -> dict[str, np.ndarray]:
    """Return the image and the chosen boxes, padded."""
    image, count = element["image"], len(chosen)
    boxes = np.zeros((max_objects, 4), np.float32)
    boxes[:count] = transform.apply_boxes(element["boxes"][chosen], image.shape[:2])
    classes = np.zeros(max_objects, np.int32)
    classes[:count] = element["classes"][chosen]
    return {
        "image": transform.apply_image(image),
        "size": np.array(transform.resized, np.int32),
        "boxes": boxes,
        "classes": classes,
        "object_valid": np.arange(max_objects) < count,
    }


def _masks(
    transform: geometry.Transform,
    element: dict[str, Any],
    chosen: np.ndarray,
    made: dict[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """Return the masks of the chosen objects as bits, padded; and new boxes.

    An object that is cut off gets the box of the rest of its mask, and is not valid without any.

    Args:
      made: result of ``_apply``.
    """
    height, width = transform.canvas
    boxes, valid = made["boxes"].copy(), made["object_valid"].copy()
    masks = np.zeros((len(boxes), height, width // 8), np.uint8)
    for place, index in enumerate(chosen):  # one by one: unpacked they are eight times as large
        segmentation, size = element["segmentations"][index], element["image"].shape[:2]
        pixels = transform_mask(segmentation, transform, size)
        masks[place] = pack_masks(pixels)
        if transform.part and not transform.part.holds(element["boxes"][index]):
            boxes[place] = mask_box(pixels)
            valid[place] = pixels.any()
    return {"masks": masks, "boxes": boxes, "object_valid": valid}
