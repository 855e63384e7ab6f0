"""Regularisers of feature maps: DropBlock as the authors trained with it, and drop path."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax


class DropBlock(nn.Module):
    """Zero 3x3 blocks of a map (B, H, W, C) in training (arXiv 1810.12890, Gluon's definition).

    The mask is drawn per channel and shared by the batch; block centres are at least one pixel
    from the edge; kept values are scaled by size / kept. Maps smaller than 3x3 do not change.
    Draws from the ``dropout`` stream.

    Attributes:
      rate: probability that a pixel is dropped, at the end of training.
    """

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, progress: jax.Array | float) -> jax.Array:
        height, width, channels = x.shape[1:]
        if not train or not self.rate or min(height, width) < 3:
            return x
        inner = (height - 2) * (width - 2)
        gamma = self.rate * progress * height * width / 9 / inner
        uniform = jax.random.uniform(self.make_rng("dropout"), (1, height - 2, width - 2, channels))
        centres = jnp.pad(uniform < gamma, ((0, 0), (1, 1), (1, 1), (0, 0)))
        window = (1, 3, 3, 1)
        dropped = lax.reduce_window(centres, False, lax.bitwise_or, window, (1, 1, 1, 1), "SAME")
        keep = (~dropped).astype(jnp.float32)
        # On the smallest maps all values may be dropped: then do not divide by 0.
        scale = keep.size / jnp.maximum(keep.sum(), 1.0)
        return x * (keep * scale).astype(x.dtype)


def drop_path(rate: float) -> nn.Module:
    """Make a layer that drops whole images of (B, H, W, C) and scales others by 1 / (1 - rate)."""
    return nn.Dropout(rate, broadcast_dims=(1, 2, 3))
