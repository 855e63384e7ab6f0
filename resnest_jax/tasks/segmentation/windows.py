"""Sliding windows over a resized image, and the interpolation between image and windows."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

CANVAS = 128  # lengths on the device are multiples of it, for few compilations


class Scale(NamedTuple):
    """The windows of an image at one scale: all pairs of rows and columns.

    Attributes:
      size: height and width of the resized image.
      rows, cols: start and end of the windows in it, along each axis.
    """

    size: tuple[int, int]
    rows: list[tuple[int, int]]
    cols: list[tuple[int, int]]


class Taps(NamedTuple):
    """Linear interpolation along an axis: output i is the sum of two weighted inputs.

    Attributes:
      index: int32 (2, n), the inputs.
      weight: float32 (2, n).
    """

    index: np.ndarray
    weight: np.ndarray


class Window(NamedTuple):
    """A window.

    Attributes:
      cut: taps along both axes, from the image to the window; weight 0 beyond the resized image.
      paste: taps along both axes, from the window to the image; weight 0 outside the window, and
        less where windows overlap: over all windows of a scale the weights add up to 1.
    """

    cut: tuple[Taps, Taps]
    paste: tuple[Taps, Taps]


def plan(height: int, width: int, base_size: int, crop_size: int, scale: float) -> Scale:
    """Return the windows of an image whose longer side becomes ``base_size * scale``."""
    size = _resized(height, width, math.ceil(base_size * scale))
    return Scale(size, *(_windows(length, crop_size) for length in size))


def on_canvas(length: int) -> int:
    """Return the length of an axis of the image on the device."""
    return -(-length // CANVAS) * CANVAS


def windows(size: tuple[int, int], crop_size: int, scale: Scale) -> Iterator[Window]:
    """Yield the windows of an image of a size at a scale."""
    rows = _axis(size[0], scale.size[0], scale.rows, crop_size)
    cols = list(_axis(size[1], scale.size[1], scale.cols, crop_size))
    for cut_row, paste_row in rows:
        for cut_col, paste_col in cols:
            yield Window((cut_row, cut_col), (paste_row, paste_col))


def _resized(height: int, width: int, longer: int) -> tuple[int, int]:
    if height > width:
        return longer, max(int(width * longer / height + 0.5), 1)
    return max(int(height * longer / width + 0.5), 1), longer


def _windows(length: int, crop_size: int) -> list[tuple[int, int]]:
    stride = int(crop_size * 2 / 3)
    more = max(math.ceil((length - crop_size) / stride), 0)
    return [(i * stride, min(i * stride + crop_size, length)) for i in range(more + 1)]


def _axis(
    length: int, resized: int, spans: list[tuple[int, int]], crop_size: int
) -> Iterator[tuple[Taps, Taps]]:
    """Yield the taps ``cut`` and ``paste`` of each window along an axis of the image."""
    count = np.zeros(resized)
    for start, end in spans:
        count[start:end] += 1
    # Corners are aligned, see models/layers/resize.py.
    image_per_resized = (length - 1) / max(resized - 1, 1)
    resized_per_image = (resized - 1) / max(length - 1, 1)
    for start, end in spans:
        cut = _taps(np.arange(start, start + crop_size) * image_per_resized, np.ones(length))
        cut.weight[:, end - start :] = 0
        on_resized = np.arange(on_canvas(length)) * resized_per_image
        yield cut, _taps(on_resized - start, 1 / count[start:end])


def _taps(positions: np.ndarray, factors: np.ndarray) -> Taps:
    """Interpolate at positions among inputs that have factors; there are none beyond them."""
    low = np.floor(positions)
    index = np.stack([low, low + 1]).astype(np.int32)
    weight = np.stack([1 - (positions - low), positions - low])
    inside = (index >= 0) & (index < len(factors))
    index = np.where(inside, index, 0)
    return Taps(index, np.where(inside, weight * factors[index], 0).astype(np.float32))
