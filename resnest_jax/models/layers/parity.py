"""Maps whose pixels are computed by the parity of their row and column."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def interleave(rows: Sequence[Sequence[jax.Array]], size: Sequence[int]) -> jax.Array:
    """Join the pixels ``(2 y + i, 2 x + j)``, ``rows[i][j]`` (B, H, W, C) each, to a map.

    Args:
      size: height and width to crop to, at most 2 H and 2 W.
    """
    y = jnp.stack([jnp.stack(row, 3) for row in rows], 2)
    batch, height, _, width, _, channels = y.shape
    return y.reshape(batch, 2 * height, 2 * width, channels)[:, : size[0], : size[1]]
