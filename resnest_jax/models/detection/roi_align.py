"""RoIAlign on a feature pyramid (arXiv 1703.06870), exact for regions of every shape.

The mean of the bilinear samples of a bin is separable: weights of rows times weights of columns. A
region is cut into square tiles of pixels, each of which adds ``rows @ pixels @ columns`` to the
region's bins. The loop over the tiles of all regions ends with the last one: the work follows the
areas of the regions, while all shapes are static and no region is too long.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from resnest_jax.models.detection.boxes import areas
from resnest_jax.models.layers.linear import linear

TILE = 16  # pixels per side
BLOCK = 8  # tiles per round of the loop: 2 MB of 256 float32 channels, which stay in the cache

State = TypeVar("State")


def assign_levels(boxes: jax.Array) -> jax.Array:
    """Return the level (N,) int32 that boxes (N, 4) are pooled from: 0 to 3 for p2 to p5.

    Boxes of an area of 224 * 224 square pixels or more are pooled from p4, those of half the side
    from p3, those of twice the side from p5 (arXiv 1612.03144).
    """
    side = jnp.sqrt(jnp.maximum(areas(boxes), 0))
    borders = jnp.array([112, 224, 448], side.dtype)
    return jnp.sum(side[:, None] >= borders[None], -1, dtype=jnp.int32)


def roi_align(
    features: Sequence[jax.Array],
    strides: Sequence[int],
    boxes: jax.Array,
    levels: jax.Array,
    size: int,
    samples: int | None = None,
) -> jax.Array:
    """Pool regions of feature maps into bins; differentiable in the features, not in the boxes.

    A bin is the mean of a grid of bilinear samples. Pixel centres are at half a pixel. A sample
    more than one pixel outside the centres counts as 0, others outside as the pixel at the border.
    As torchvision's ``roi_align(aligned=True)`` and detectron2's ``ROIAlignV2``.

    Args:
      features: levels of one image, (H, W, C) each, of one float dtype.
      strides: of each level, in pixels of the image.
      boxes: (R, 4) float32 in pixels of the image.
      levels: (R,) integers, the index of the level that each box is pooled from.
      size: bins per side, P.
      samples: per side of a bin; None is ceil(side / P) for each side of a box, in pixels of its
        level. There is no limit to it.

    Returns:
      (R, P, P, C) in the features' dtype; 0 for an empty box if ``samples`` is None.
    """
    shapes = tuple((level.shape[0], level.shape[1]) for level in features)
    channels = features[0].shape[-1]
    # The last row of a tile may reach beyond the last pixel.
    beyond = jnp.zeros((TILE, channels), features[0].dtype)
    flat = jnp.concatenate([*(level.reshape(-1, channels) for level in features), beyond])
    pooling = _Pooling(shapes, tuple(strides), size, samples)
    boxes = lax.stop_gradient(boxes)
    return linear(partial(_pool, pooling), partial(_spread, pooling), (boxes, levels), flat)


class _Pooling(NamedTuple):
    """The static part of the arguments of ``roi_align``."""

    shapes: tuple[tuple[int, int], ...]
    strides: tuple[int, ...]
    size: int
    samples: int | None


class _Line(NamedTuple):
    """The samples of regions along one axis, in pixels of the level: arrays (R,)."""

    start: jax.Array  # first sample of the first bin, float32
    step: jax.Array  # from sample to sample, float32, >= 0
    bin: jax.Array  # from bin to bin, float32
    count: jax.Array  # samples per bin, int32
    low: jax.Array  # first pixel with a weight, int32
    tiles: jax.Array  # from there to the last pixel with a weight, int32
    length: jax.Array  # pixels of the level, int32


class _Tiles(NamedTuple):
    """K tiles; those after the last one have no weight."""

    region: jax.Array  # (K,) int32
    rows: jax.Array  # (K, P, TILE) float32, the weights of its rows in the bins of the region
    columns: jax.Array  # (K, P, TILE) float32
    pixels: jax.Array  # (K, TILE) int32, where each row begins in the flat pyramid


def _pool(pooling: _Pooling, boxes: jax.Array, levels: jax.Array, flat: jax.Array) -> jax.Array:
    """Return the bins (R, P, P, C) of a flat pyramid (pixels, C)."""
    channels = flat.shape[-1]
    windows = lax.GatherDimensionNumbers((2, 3), (), (0,))

    def add(bins: jax.Array, tiles: _Tiles) -> jax.Array:
        x = lax.gather(flat, tiles.pixels[..., None], windows, (TILE, channels), mode="clip")
        x = jnp.einsum("kpy,kyxc->kpxc", tiles.rows, x, precision=lax.Precision.HIGHEST)
        x = jnp.einsum("kqx,kpxc->kpqc", tiles.columns, x, precision=lax.Precision.HIGHEST)
        return bins.at[tiles.region].add(x)

    shape = (len(boxes), pooling.size, pooling.size, channels)
    bins = jnp.zeros(shape, jnp.promote_types(flat.dtype, jnp.float32))
    return _over_tiles(pooling, boxes, levels, add, bins).astype(flat.dtype)


def _spread(pooling: _Pooling, boxes: jax.Array, levels: jax.Array, bins: jax.Array) -> jax.Array:
    """Return the transpose of ``_pool``: from bins (R, P, P, C) to a flat pyramid (pixels, C)."""
    windows = lax.ScatterDimensionNumbers((2, 3), (), (0,))

    def add(flat: jax.Array, tiles: _Tiles) -> jax.Array:
        x = bins[tiles.region]
        x = jnp.einsum("kqx,kpqc->kpxc", tiles.columns, x, precision=lax.Precision.HIGHEST)
        x = jnp.einsum("kpy,kpxc->kyxc", tiles.rows, x, precision=lax.Precision.HIGHEST)
        return lax.scatter_add(flat, tiles.pixels[..., None], x, windows, mode="drop")

    num_pixels = sum(height * width for height, width in pooling.shapes) + TILE
    dtype = jnp.promote_types(bins.dtype, jnp.float32)
    flat = jnp.zeros((num_pixels, bins.shape[-1]), dtype)
    return _over_tiles(pooling, boxes, levels, add, flat).astype(bins.dtype)


def _over_tiles(
    pooling: _Pooling,
    boxes: jax.Array,
    levels: jax.Array,
    add: Callable[[State, _Tiles], State],
    state: State,
) -> State:
    """Fold a function over the tiles of all regions."""
    heights, widths = (jnp.array(lengths)[levels] for lengths in zip(*pooling.shapes, strict=True))
    scale = (1 / jnp.array(pooling.strides, jnp.float32))[levels]
    bins = pooling.size, pooling.samples
    y = _line(boxes[:, 1] * scale, boxes[:, 3] * scale, heights, *bins)
    x = _line(boxes[:, 0] * scale, boxes[:, 2] * scale, widths, *bins)
    sizes = [height * width for height, width in pooling.shapes]
    first = jnp.array(np.cumsum([0, *sizes[:-1]]))[levels]
    tiles = y.tiles * x.tiles
    end = jnp.cumsum(tiles)

    def tiles_from(start: jax.Array) -> _Tiles:
        place = start + jnp.arange(BLOCK)
        region = jnp.searchsorted(end, place, side="right", method="compare_all")
        region = jnp.minimum(region, len(boxes) - 1)
        ys, xs = (_Line(*(part[region] for part in line)) for line in (y, x))
        row, column = jnp.divmod(place - (end - tiles)[region], jnp.maximum(xs.tiles, 1))
        row, column = ys.low + TILE * row, xs.low + TILE * column
        rows = row[:, None] + jnp.arange(TILE)[None]
        return _Tiles(
            region,
            jnp.where((place < end[-1])[:, None, None], _weights(ys, row, pooling.size), 0),
            _weights(xs, column, pooling.size),
            (first[region] + column)[:, None] + rows * xs.length[:, None],
        )

    def body(carry: tuple[jax.Array, State]) -> tuple[jax.Array, State]:
        start, state = carry
        return start + BLOCK, add(state, tiles_from(start))

    last = _most(end[-1])
    return lax.while_loop(lambda carry: carry[0] < last, body, (jnp.int32(0), state))[1]


@jax.custom_batching.custom_vmap
def _most(count: jax.Array) -> jax.Array:
    """Return the largest count of the images under ``vmap``.

    A loop that ends with it ends for all images: else each round would copy the state of all, to
    keep that of the images whose loop has ended.
    """
    return count


@_most.def_vmap
def _most_of_batch(size: int, batched: list[bool], count: jax.Array) -> tuple[jax.Array, bool]:
    return jnp.max(count), False


def bin_weights(
    begin: jax.Array, end: jax.Array, length: jax.Array, size: int, pixels: int
) -> jax.Array:
    """Return the weights (R, size, pixels) of a line of pixels in the bins of regions.

    As in ``roi_align``, which is this along both axes of a map.

    Args:
      begin, end: (R,) float32, the sides of the regions in pixels.
      length: (R,) int32, of the line; what comes after it has no weight.
      size: bins per region.
      pixels: at least ``length``.
    """
    line = _line(begin, end, length, size, None)
    return _weights(line, jnp.zeros_like(length), size, pixels)


def _line(
    begin: jax.Array, end: jax.Array, length: jax.Array, size: int, samples: int | None
) -> _Line:
    """Return the samples between the sides of boxes, (R,) in pixels of the level."""
    begin, end = begin - 0.5, end - 0.5
    bin = (end - begin) / size
    if samples is None:
        count = jnp.maximum(jnp.ceil(bin), 0).astype(jnp.int32)
    else:
        count = jnp.full(bin.shape, samples, jnp.int32)
    step = bin / jnp.maximum(count, 1)
    start = begin + step / 2
    low, high = (
        jnp.clip(jnp.floor(sample).astype(jnp.int32) + after, 0, length - 1)
        for sample, after in ((start, 0), (end - step / 2, 1))
    )
    tiles = jnp.where(count > 0, (high - low) // TILE + 1, 0)
    return _Line(start, step, bin, count, low, tiles, length)


def _weights(line: _Line, low: jax.Array, size: int, pixels: int = TILE) -> jax.Array:
    """Return the weights (K, P, pixels) in each bin of the pixels from ``low`` (K,) on.

    In closed form: the samples between two pixels are an arithmetic sequence, and each is shared by
    the two pixels.
    """
    bins = jnp.arange(size, dtype=jnp.float32)[None] * line.bin[:, None]
    start = (line.start[:, None] + bins)[..., None]
    step, count, length = (part[:, None, None] for part in (line.step, line.count, line.length))
    pixel = (low[:, None] + jnp.arange(-1, pixels + 1)[None])[:, None]
    # The samples before each pixel; the one at the outer limit still counts.
    before = (pixel - start) / jnp.maximum(step, 1e-30)
    before = jnp.where(pixel == length, jnp.floor(before) + 1, jnp.ceil(before))
    before = jnp.clip(before, 0, count)
    begin, end, left = before[..., :-1], before[..., 1:], pixel[..., :-1]
    number = jnp.where((left >= -1) & (left < length), end - begin, 0)
    # The sum of the distances from the pixel on the left is the weight of that on the right.
    right = number * (start - left + step * (begin + end - 1) / 2)
    right = jnp.where(left == -1, number, jnp.where(left == length - 1, 0, right))
    return (right[..., :-1] + (number - right)[..., 1:]) / jnp.maximum(count, 1)
