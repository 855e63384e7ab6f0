"""Masks of objects: COCO's polygons and run-length codes, bitmaps, and predicted masks in a box.

Edges are continuous: a box or a polygon around the whole pixels i to j spans i to j + 1.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from resnest_jax.data.geometry import Size, Transform
from resnest_jax.errors import InputError, import_package

# Polygons, each x, y, x, y, ...; or a run-length code: "size" and "counts", compressed or not.
Segmentation = Sequence[Sequence[float]] | Mapping[str, Any]
CACHED = 2**15  # pixels that are pasted at a time, so that they stay in a core's cache
POINTS = 3  # a polygon of fewer points is left out, as in detectron2


def to_bitmap(segmentation: Segmentation, size: Size) -> np.ndarray:
    """Return the pixels of an object, bool (H, W), rasterised as COCO does.

    Those of all polygons together; only a run-length code has holes.

    Args:
      segmentation: polygons, which may reach beyond the image, or a run-length code.
      size: of the image.

    Raises:
      InputError: if it is broken, or a run-length code is of another size.
    """
    with _input_errors(size):
        if isinstance(segmentation, Mapping):
            return _run_lengths(segmentation, size)
        return _rasterize(_points(segmentation), size)


def usable_part(segmentation: Segmentation, size: Size) -> Segmentation | None:
    """Return a segmentation without polygons of fewer than three points; None if nothing is left.

    Args:
      segmentation, size: see ``to_bitmap``.

    Raises:
      InputError: see ``to_bitmap``.
    """
    with _input_errors(size):
        if isinstance(segmentation, Mapping):
            return segmentation if sum(_counts(segmentation, size)[1::2]) else None
        return [polygon.ravel().tolist() for polygon in _points(segmentation)] or None


def transform_mask(segmentation: Segmentation, transform: Transform, size: Size) -> np.ndarray:
    """Return the pixels of an object in a transformed image, bool (H, W) of the canvas.

    As in detectron2, the points of polygons are moved and rasterised there; the pixels of a
    run-length code are resized, each the nearest one.

    Args:
      segmentation: see ``to_bitmap``.
      transform: of the image.
      size: of the image before.

    Raises:
      InputError: see ``to_bitmap``.
    """
    if isinstance(segmentation, Mapping):
        pixels = to_bitmap(segmentation, size).astype(np.uint8)
        return transform.apply_labels(pixels, 0).astype(bool)
    with _input_errors(size):
        points = [transform.apply_points(polygon, size) for polygon in _points(segmentation)]
    height, width = transform.inside
    canvas = np.zeros(transform.canvas, bool)
    canvas[:height, :width] = _rasterize(points, (height, width))
    return canvas


def mask_box(pixels: np.ndarray) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom of the smallest box around bool (H, W) pixels.

    Zeros if there are none.
    """
    rows, columns = (np.flatnonzero(pixels.any(axis)) for axis in (1, 0))
    if not len(rows):
        return 0, 0, 0, 0
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def pack_masks(masks: np.ndarray) -> np.ndarray:
    """Return masks (N, H, W) as bits, uint8 (N, H, W / 8), as the mask head is trained on them."""
    return np.packbits(masks, axis=-1)


def paste_mask(mask: np.ndarray, box: np.ndarray, size: Size, threshold: float = 0.5) -> np.ndarray:
    """Return the pixels of an image that a predicted mask covers, bool (H, W).

    The mask is enlarged to its box, bilinear between the centres of its cells and 0 outside. As in
    detectron2; the box may reach beyond the image.

    Args:
      mask: (P, P) float, probabilities in the cells of the box.
      box: (4,), in pixels of the image.
      size: of the image.
      threshold: least probability of a covered pixel.
    """
    cells = np.pad(mask.astype(np.float32), 1)
    y, row, down = _places(box[1], box[3], size[0], len(mask))
    x, column, right = _places(box[0], box[2], size[1], len(mask))
    # Not as a product with weights: threads of BLAS would compete with the network for the cores.
    at_rows = (cells[row] + down[:, None] * (cells[row + 1] - cells[row])).T.copy()
    slope = np.diff(at_rows, axis=0)
    pixels = np.zeros(size, bool, order="F")  # column by column, as run-length codes are
    columns = pixels[y, x].T
    step = max(1, CACHED // max(1, len(row)))
    for part in (slice(i, i + step) for i in range(0, len(column), step)):
        value = slope[column[part]] * right[part, None]
        value += at_rows[column[part]]
        np.greater_equal(value, threshold, out=columns[part])
    return pixels


def encode_mask(pixels: np.ndarray) -> dict[str, Any]:
    """Return the run-length code of bool (H, W) pixels, compressed, as COCO's server takes it."""
    code = _pycocotools().encode(np.asfortranarray(pixels).view(np.uint8))
    return {"size": list(pixels.shape), "counts": code["counts"].decode()}


@contextlib.contextmanager
def _input_errors(size: Size) -> Iterator[None]:
    """Turn the errors of a broken mask into InputError."""
    try:
        yield
    except (KeyError, ValueError, TypeError, OverflowError) as error:
        raise InputError(f"a mask of an image of size {size} is broken: {error!r}") from None


def _points(polygons: Sequence[Sequence[float]]) -> list[np.ndarray]:
    """Return the points (N, 2) of each polygon."""
    if not all(isinstance(polygon, list | tuple | np.ndarray) for polygon in polygons):
        raise ValueError("expected a list of polygons, each x, y, x, y, ...")
    points = [np.array(polygon, float) for polygon in polygons if len(polygon) >= 2 * POINTS]
    if any(len(polygon) % 2 or not np.isfinite(polygon).all() for polygon in points):
        raise ValueError("a polygon needs pairs of finite numbers")
    return [polygon.reshape(-1, 2) for polygon in points]


def _rasterize(points: Sequence[np.ndarray], size: Size) -> np.ndarray:
    if not points:
        return np.zeros(size, bool)
    coco = _pycocotools()
    codes = coco.frPyObjects([polygon.ravel().tolist() for polygon in points], *size)
    return coco.decode(coco.merge(codes)).astype(bool)


def _run_lengths(code: Mapping[str, Any], size: Size) -> np.ndarray:
    # Not by pycocotools, which decodes broken codes to whatever is in memory.
    counts = _counts(code, size)
    pixels = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return np.ascontiguousarray(pixels.reshape(size, order="F"))


def _counts(code: Mapping[str, Any], size: Size) -> Sequence[int]:
    """Return the lengths of the runs, of the background first; raise ValueError for wrong ones."""
    if list(code["size"]) != list(size):
        raise ValueError(f"its run-length code is of size {list(code['size'])}")
    counts = code["counts"]
    if isinstance(counts, str | bytes):
        counts = _uncompressed(counts.encode() if isinstance(counts, str) else counts)
    if min(counts, default=0) < 0 or sum(counts) != size[0] * size[1]:
        raise ValueError(f"its run-length code has {sum(counts)} pixels")
    if not all(isinstance(count, int) for count in counts):
        raise ValueError("its run lengths must be integers")
    return counts


def _uncompressed(code: bytes) -> list[int]:
    """Return the run lengths of a compressed code: 5 bits in a byte, the lowest first.

    From the fourth on, a number is the difference from the last but one.
    """
    counts: list[int] = []
    number = shift = 0
    for byte in code:
        bits = byte - 48
        number |= (bits & 31) << shift
        shift += 5
        if bits & 32:  # more bits follow
            continue
        if bits & 16:  # negative
            number -= 1 << shift
        counts.append(number + (counts[-2] if len(counts) > 2 else 0))
        number = shift = 0
    return counts


def _places(
    begin: float, end: float, length: int, cells: int
) -> tuple[slice, np.ndarray, np.ndarray]:
    """Return the pixels of a line that cells from ``begin`` to ``end`` reach, and where they are.

    That is between the centres of which cell and its next one, of cells with an empty one added on
    each side, and how far from the first, float32 from 0 to 1.
    """
    side = max(end - begin, 0)
    first, last = (
        min(max(int(edge), 0), length)
        for edge in (begin - side / cells, end + side / cells + 1 if side else 0)
    )
    centres = np.arange(first, max(first, last), dtype=np.float32) + np.float32(0.5)
    place = (centres - np.float32(begin)) / np.float32(side or 1) * cells + np.float32(0.5)
    place = np.clip(place, 0, cells + 1)
    cell = np.minimum(place.astype(int), cells)
    return slice(first, first + len(centres)), cell, place - cell.astype(np.float32)


def _pycocotools() -> ModuleType:
    return import_package("pycocotools.mask", "resnest_jax[detection]")
