"""Bilinear resize with aligned corners."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def resize_aligned(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Resize (B, h, w, C) to (B, H, W, C): the centres of the corner pixels stay corners.

    Output pixel i lies at ``i * (h - 1) / (H - 1)`` of the input. There is no antialiasing when
    the image shrinks. An axis of one input pixel is repeated; one output pixel is the first.
    PyTorch's ``interpolate(mode="bilinear", align_corners=True)``, and so the authors'.
    """
    for axis, length in zip((2, 1), size[::-1], strict=True):
        if x.shape[axis] == 1:
            x = jnp.repeat(x, length, axis)
        elif x.shape[axis] != length:
            x = _interpolate(x, axis, length)
    return x


def _interpolate(x: jax.Array, axis: int, length: int) -> jax.Array:
    # As a product: its gradient is one too, where that of a gather would be a slow scatter. There
    # is one per image or row, so that nothing is transposed.
    batch, height, width, channels = x.shape
    if axis == 1:
        x, shape = x.reshape(batch, height, -1), (batch, length, width, channels)
    else:
        x, shape = x.reshape(-1, width, channels), (batch, height, length, channels)
    matrix = jnp.asarray(interpolation(x.shape[1], length), x.dtype)
    matrices = jnp.broadcast_to(matrix, (x.shape[0], *matrix.shape))
    contraction = (((2,), (1,)), ((0,), (0,)))
    return lax.dot_general(matrices, x, contraction, precision=lax.Precision.HIGHEST).reshape(shape)


def interpolation(length: int, new_length: int) -> np.ndarray:
    """Return the weights (new_length, length) of a linear interpolation with aligned corners."""
    position = np.arange(new_length) * ((length - 1) / max(new_length - 1, 1))
    return np.maximum(1 - np.abs(position[:, None] - np.arange(length)), 0)
