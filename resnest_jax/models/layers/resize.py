"""Bilinear resize with aligned corners."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from resnest_jax.models.layers.platforms import on_cpu


def resize_aligned(x: jax.Array, size: tuple[int, int], platform: str | None = None) -> jax.Array:
    """Resize (B, h, w, C) to (B, H, W, C): the centres of the corner pixels stay corners.

    Output pixel i lies at ``i * (h - 1) / (H - 1)`` of the input. There is no antialiasing when
    the image shrinks. An axis of one input pixel is repeated; one output pixel is the first.
    PyTorch's ``interpolate(mode="bilinear", align_corners=True)``, and so the authors'.
    ``platform`` selects the form, see ``layers.platforms``.
    """
    # Products with a matrix: their gradients are too, where that of a gather is a slow scatter.
    product = _batched_product if on_cpu(platform) else _product
    for axis, length in zip((2, 1), size[::-1], strict=True):
        if x.shape[axis] == 1:
            x = jnp.repeat(x, length, axis)
        elif x.shape[axis] != length:
            x = product(x, axis, jnp.asarray(interpolation(x.shape[axis], length), x.dtype))
    return x


def _batched_product(x: jax.Array, axis: int, matrix: jax.Array) -> jax.Array:
    """Multiply an axis by one matrix per image or row, so that nothing is transposed."""
    batch, height, width, channels = x.shape
    shape = (*x.shape[:axis], len(matrix), *x.shape[axis + 1 :])
    x = x.reshape((batch, height, -1) if axis == 1 else (-1, width, channels))
    matrices = jnp.broadcast_to(matrix, (x.shape[0], *matrix.shape))
    contraction = (((2,), (1,)), ((0,), (0,)))
    return lax.dot_general(matrices, x, contraction, precision=lax.Precision.HIGHEST).reshape(shape)


def _product(x: jax.Array, axis: int, matrix: jax.Array) -> jax.Array:
    form = "bhwc,oh->bowc" if axis == 1 else "bhwc,ow->bhoc"
    return jnp.einsum(form, x, matrix, precision=lax.Precision.HIGHEST)


def interpolation(length: int, new_length: int) -> np.ndarray:
    """Return the weights (new_length, length) of a linear interpolation with aligned corners."""
    position = np.arange(new_length) * ((length - 1) / max(new_length - 1, 1))
    return np.maximum(1 - np.abs(position[:, None] - np.arange(length)), 0)
