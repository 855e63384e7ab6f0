"""Forms of a dilated convolution: on every d-th pixel, or tap by tap."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def on_phases(convolve: Callable[[jax.Array], jax.Array], x: jax.Array, dilation: int) -> jax.Array:
    """Convolve (B, H, W, C) with a plain convolution, on the d * d images of every d-th pixel.

    Args:
      convolve: from (d * d * B, ceil(H / d), ceil(W / d), C) to as many pixels.
    """
    d, (batch, height, width, channels) = dilation, x.shape
    rows, columns = -(-height // d), -(-width // d)
    x = jnp.pad(x, ((0, 0), (0, rows * d - height), (0, columns * d - width), (0, 0)))
    x = x.reshape(batch, rows, d, columns, d, channels).transpose(2, 4, 0, 1, 3, 5)
    y = convolve(x.reshape(d * d * batch, rows, columns, channels))
    y = y.reshape(d, d, batch, rows, columns, -1).transpose(2, 3, 0, 4, 1, 5)
    return y.reshape(batch, rows * d, columns * d, -1)[:, :height, :width]


def by_taps(x: jax.Array, kernel: jax.Array, dilation: int) -> jax.Array:
    """Sum the products of the pixels with each entry of a (k, k, C_in, C_out) kernel.

    Pixels outside take no part, so that for a dilation near the size of the image little more than
    the product with the centre is left.
    """
    size = kernel.shape[0]
    y = jnp.zeros((*x.shape[:3], kernel.shape[-1]), x.dtype)
    for i in range(size):
        for j in range(size):
            (top, bottom), (left, right) = (
                _reach((tap - size // 2) * dilation, length)
                for tap, length in zip((i, j), x.shape[1:3], strict=True)
            )
            part = x[:, top : x.shape[1] - bottom, left : x.shape[2] - right]
            if not part.size:
                continue
            product = (part.reshape(-1, x.shape[-1]) @ kernel[i, j]).reshape(*part.shape[:3], -1)
            y = y + jnp.pad(product, ((0, 0), (bottom, top), (right, left), (0, 0)))
    return y


def _reach(offset: int, length: int) -> tuple[int, int]:
    """Return how many pixels are cut at the start and the end of an axis moved by an offset."""
    return min(max(offset, 0), length), min(max(-offset, 0), length)
