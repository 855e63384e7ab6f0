"""Resize, flip, crop and pad an image together with its label map or its boxes.

Pixel by pixel as in the ResNeSt authors' code: PyTorch-Encoding for segmentation, their detectron2
for detection. Sizes are pairs (height, width), offsets (y, x), boxes (left, top, right, bottom).
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

Size = tuple[int, int]


class Draws(NamedTuple):
    """The random numbers of one training crop.

    Attributes:
      flip: mirror left to right.
      long: longer side after resizing, in pixels.
      x, y: left and top of the crop in the resized and padded image.
    """

    flip: bool
    long: int
    x: int
    y: int


class Part(NamedTuple):
    """A rectangle of whole pixels of an image."""

    offset: Size
    size: Size

    def holds(self, box: np.ndarray) -> bool:
        """Return whether a box (4,) is in it."""
        (y, x), (height, width) = self
        x0, y0, x1, y1 = box
        return bool(x <= x0 and y <= y0 and x1 <= x + width and y1 <= y + height)


@dataclasses.dataclass(frozen=True)
class Transform:
    """Mirror, resize, cut the window at an offset and pad it to the right and bottom.

    Attributes:
      flip: mirror left to right, before resizing.
      resized: size of the whole image.
      offset: of the window in the resized image.
      canvas: size of the result.
      part: of the image, cut out first: it is the whole image then.
    """

    flip: bool
    resized: Size
    offset: Size
    canvas: Size
    part: Part | None = None

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        """Transform uint8 (H, W, 3): bilinear, antialiased when shrinking; black outside."""
        return self._apply(image, Image.Resampling.BILINEAR, 0)

    def apply_labels(self, labels: np.ndarray, padding: int) -> np.ndarray:
        """Transform labels, uint8 (H, W): the nearest pixel; ``padding`` outside."""
        return self._apply(labels, Image.Resampling.NEAREST, padding)

    def apply_boxes(self, boxes: np.ndarray, size: Size) -> np.ndarray:
        """Transform boxes of an image of a size, float (N, 4), and clip them to the window.

        Edges are continuous: a box of the whole pixels i to j spans i to j + 1.
        """
        moved = self.apply_points(boxes.reshape(-1, 2), size).reshape(-1, 4)
        if self.flip:
            moved = moved[:, [2, 1, 0, 3]]
        height, width = self.inside
        return np.clip(moved, 0, (width, height) * 2)

    def apply_points(self, points: np.ndarray, size: Size) -> np.ndarray:
        """Transform points (x, y) of an image of a size, float (N, 2); they are not clipped."""
        if self.part:
            (y, x), size = self.part
            points = points - (x, y)
        if self.flip:
            points = points * (-1, 1) + (size[1], 0)
        height, width = (new / old for new, old in zip(self.resized, size, strict=True))
        y, x = self.offset
        return points * (width, height) - (x, y)

    @property
    def inside(self) -> Size:
        """Size of the part of the window that the image covers, at its left and top."""
        height, width = (
            min(new - start, side)
            for new, start, side in zip(self.resized, self.offset, self.canvas, strict=True)
        )
        return height, width

    def _apply(self, array: np.ndarray, resampling: Image.Resampling, padding: int) -> np.ndarray:
        if self.part:
            (y, x), (height, width) = self.part
            array = array[y : y + height, x : x + width]
        if self.flip:
            array = array[:, ::-1]
        height, width = self.resized
        if array.shape[:2] != self.resized:
            array = np.asarray(Image.fromarray(array).resize((width, height), resampling))
        window = tuple(
            slice(start, start + side) for start, side in zip(self.offset, self.canvas, strict=True)
        )
        array = array[window]
        missing = [(0, side - has) for side, has in zip(self.canvas, array.shape[:2], strict=True)]
        if not np.any(missing):
            return np.ascontiguousarray(array)
        missing += [(0, 0)] * (array.ndim - 2)
        return np.pad(array, missing, constant_values=padding)


def draw(
    rng: np.random.Generator,
    size: Size,
    crop: int,
    base: int,
    scale: tuple[float, float] = (0.5, 2.0),
    flip: bool = True,
) -> Draws:
    """Draw a training crop.

    Args:
      size: of the image.
      crop: side of the crop.
      base, scale: the longer side becomes an integer from ``base * scale[0]`` to
        ``base * scale[1]``, both included.
      flip: whether to mirror half of the images.
    """
    mirrored = bool(flip and rng.random() < 0.5)
    low, high = (int(base * factor) for factor in scale)
    long = int(rng.integers(low, high, endpoint=True))
    height, width = _long_side(size, long)
    x, y = (int(rng.integers(0, max(side - crop, 0), endpoint=True)) for side in (width, height))
    return Draws(mirrored, long, x, y)


def random_crop(size: Size, crop: int, draws: Draws) -> Transform:
    """Return the transform of a training image to a (crop, crop) square."""
    resized = _long_side(size, draws.long)
    return Transform(draws.flip, resized, (draws.y, draws.x), (crop, crop))


def center_crop(size: Size, crop: int) -> Transform:
    """Return the transform whose result is the centred square, ``crop`` the shorter side."""
    shorter = min(size)
    height, width = (side * crop // shorter for side in size)
    offset = round((height - crop) / 2), round((width - crop) / 2)
    return Transform(False, (height, width), offset, (crop, crop))


def draw_part(rng: np.random.Generator, size: Size, least: float, box: Sequence[float]) -> Part:
    """Draw a part of an image with the centre of a box, maybe at its edge, as in detectron2.

    Args:
      size: of the image.
      least: smallest fraction of each side.
      box: in the image.
    """
    fractions = least + rng.random(2) * (1 - least)
    sides = [_fraction(side, fraction) for side, fraction in zip(size, fractions, strict=True)]
    offsets = []
    for axis, (length, side) in enumerate(zip(size, sides, strict=True)):
        centre = (box[1 - axis] + box[3 - axis]) / 2
        low = max(math.floor(centre) - side, 0)
        high = min(length - side, math.ceil(centre))
        offsets.append(int(rng.integers(low, high, endpoint=True)))
    return Part((offsets[0], offsets[1]), (sides[0], sides[1]))


def largest_sides(size: Size, short: int, longest: int, least: float) -> Size:
    """Return the largest height and width of parts of an image, see ``short_side``.

    Args:
      size: of the image.
      least: smallest fraction of each side.
    """
    height, width = size
    narrow = short_side((height, _fraction(width, least)), short, longest)
    low = short_side((_fraction(height, least), width), short, longest)
    return narrow[0], low[1]


def _fraction(side: int, fraction: float) -> int:
    return max(1, int(side * fraction + 0.5))


def short_side(size: Size, short: int, longest: int) -> Size:
    """Return the size, of the same shape, whose shorter side is ``short``.

    Where the longer side would exceed ``longest``, that is the longer side instead.
    """
    scale = short / min(size)
    sides = [short if side == min(size) else side * scale for side in size]
    if max(sides) > longest:
        scale = longest / max(sides)
        sides = [side * scale for side in sides]
    height, width = (max(1, int(side + 0.5)) for side in sides)
    return height, width


def _long_side(size: Size, long: int) -> Size:
    """Return the size, of the same shape, whose longer side is ``long``."""
    height, width = size
    longer = max(size)
    # At least 1: a row of pixels stays one.
    return max(1, int(height * long / longer + 0.5)), max(1, int(width * long / longer + 0.5))
