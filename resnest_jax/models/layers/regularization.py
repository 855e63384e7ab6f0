"""Regularisers of feature maps: DropBlock as the authors trained with it, and drop path."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype
from jax import lax


def drop_block_masks(
    rng: jax.Array,
    shapes: Sequence[tuple[int, int, int]],
    rate: jax.Array | float,
    dtype: Dtype = jnp.float32,
) -> list[jax.Array]:
    """Draw factors that zero 3x3 blocks of maps (DropBlock, arXiv 1810.12890, Gluon's definition).

    A map (B, H, W, C) is to be multiplied by its factors (1, H, W, C): block centres are drawn per
    channel, at least one pixel from the edge, and shared by the batch; kept values are scaled by
    size / kept. Maps smaller than 3x3 do not change.

    Args:
      rng: key of all draws.
      shapes: (H, W, C) of each map.
      rate: probability that a pixel is dropped.
      dtype: of the factors.

    Returns:
      An array (1, H, W, C) for each of the shapes.
    """
    masks: dict[int, jax.Array] = {}
    # One draw for all maps of a shape: a draw of any size is hundreds of instructions to compile.
    for i, shape in enumerate(sorted(set(shapes))):
        maps = [j for j, other in enumerate(shapes) if other == shape]
        drawn = _masks(jax.random.fold_in(rng, i), len(maps), shape, rate)
        masks |= zip(maps, jnp.split(drawn.astype(dtype), len(maps)), strict=True)
    return [masks[i] for i in range(len(shapes))]


def _masks(
    rng: jax.Array, count: int, shape: tuple[int, int, int], rate: jax.Array | float
) -> jax.Array:
    """Draw factors (count, H, W, C) for maps of one shape."""
    height, width, channels = shape
    if min(height, width) < 3:
        return jnp.ones((count, *shape))
    inner = (height - 2) * (width - 2)
    gamma = rate * height * width / 9 / inner
    centres = jax.random.uniform(rng, (count, height - 2, width - 2, channels)) < gamma
    window, padding = (1, 3, 3, 1), ((0, 0), (2, 2), (2, 2), (0, 0))
    dropped = lax.reduce_window(centres, False, lax.bitwise_or, window, (1, 1, 1, 1), padding)
    keep = (~dropped).astype(jnp.float32)
    # On the smallest maps all values may be dropped: then do not divide by 0.
    kept = jnp.maximum(keep.sum((1, 2, 3), keepdims=True), 1.0)
    return keep * (height * width * channels / kept)


def drop_path(rate: float) -> nn.Module:
    """Make a layer that drops whole images of (B, H, W, C) and scales others by 1 / (1 - rate)."""
    return nn.Dropout(rate, broadcast_dims=(1, 2, 3))
