"""Anchors of the region proposal network on the levels p2 to p6 of a feature pyramid."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

STRIDES = (4, 8, 16, 32, 64)
SIZES = (32, 64, 128, 256, 512)
RATIOS = (0.5, 1.0, 2.0)  # height / width


def pyramid_anchors(shapes: Sequence[tuple[int, int]]) -> list[jax.Array]:
    """Return the anchors of maps p2 to p6 of ``shapes`` (height, width), see ``anchors``."""
    levels = zip(shapes, STRIDES, SIZES, strict=True)
    return [anchors(shape, stride, size) for shape, stride, size in levels]


def anchors(
    shape: tuple[int, int], stride: int, size: float, ratios: Sequence[float] = RATIOS
) -> jax.Array:
    """Return the anchors (H * W * len(ratios), 4) float32 of a feature map of shape (H, W).

    The order is row, column, ratio. Those of a cell are centred on ``stride * index`` pixels, have
    an area of ``size ** 2`` and reach beyond the image at its border.
    """
    height, width = shape
    cell = jnp.asarray(_cell(size, ratios))
    x, y = (jnp.arange(n, dtype=jnp.float32) * stride for n in (width, height))
    y, x = jnp.meshgrid(y, x, indexing="ij")
    centres = jnp.stack((x, y, x, y), -1)
    return (centres[:, :, None] + cell[None, None]).reshape(-1, 4)


def _cell(size: float, ratios: Sequence[float]) -> np.ndarray:
    """Return the anchors (len(ratios), 4) around the origin."""
    ratio = np.asarray(ratios)
    width = np.sqrt(size**2 / ratio)
    sides = np.stack((width, ratio * width), -1)
    return np.concatenate((-sides, sides), -1).astype(np.float32) / np.float32(2)
