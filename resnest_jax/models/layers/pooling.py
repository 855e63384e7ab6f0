"""Pools; on CPU as strided slices, because XLA's windows take several times as long there.

``platform`` is the target platform, see ``layers.platforms.on_cpu``.
"""

from functools import partial, reduce
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from resnest_jax.models.layers.linear import linear, tangent_of
from resnest_jax.models.layers.parity import interleave
from resnest_jax.models.layers.platforms import on_cpu

WINDOW = [(i, j) for i in range(3) for j in range(3)]
PADDING: Any = ((1, 1), (1, 1))  # Any, as flax's annotations allow only names of paddings


def max_pool(x: jax.Array, platform: str | None = None) -> jax.Array:
    """Apply the stem's 3x3 max pool, stride 2, padding 1, to (B, H, W, C); sizes are rounded up.

    The gradient goes to the first of several equal maxima.
    """
    if on_cpu(platform):
        return _max_pool_slices(x)
    return nn.max_pool(x, (3, 3), (2, 2), PADDING)


def average_pool(x: jax.Array, strides: int, platform: str | None = None) -> jax.Array:
    """Apply the 3x3 average pool of AVD; its padding of one pixel counts in the mean."""
    if on_cpu(platform):
        mean = partial(_mean, strides=strides)
        transposes = {1: mean, 2: partial(_spread, size=x.shape[1:3])}
        return linear(mean, transposes[strides], (), x) if strides in transposes else mean(x)
    return nn.avg_pool(x, (3, 3), (strides, strides), PADDING)


def shortcut_pool(x: jax.Array, strides: int, platform: str | None = None) -> jax.Array:
    """Apply the shortcut's average pool, in ceil mode; padding at odd edges does not count."""
    window = (strides, strides)
    if on_cpu(platform) and x.shape[1] % strides == 0 and x.shape[2] % strides == 0:
        offsets = [(i, j) for i in range(strides) for j in range(strides)]
        return reduce(jnp.add, [x[:, i::strides, j::strides] for i, j in offsets]) / strides**2
    return nn.avg_pool(x, window, window, "SAME", count_include_pad=False)


def _windows(x: jax.Array, strides: int, fill: float) -> list[jax.Array]:
    """Return the nine pixels of every 3x3 window, row by row, with edges padded by ``fill``."""
    height, width = ((size - 1) // strides * strides + 1 for size in x.shape[1:3])
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=fill)
    return [x[:, i : i + height : strides, j : j + width : strides] for i, j in WINDOW]


def _mean(x: jax.Array, strides: int) -> jax.Array:
    return reduce(jnp.add, _windows(x, strides, 0)) / 9


def _spread(dy: jax.Array, size: tuple[int, ...]) -> jax.Array:
    """Apply the transpose of ``_mean`` at stride 2; JAX's would store nine padded maps."""
    here, right, below, diagonal = _corners(dy / 9, 0)
    rows = (here, here + right), (here + below, here + right + below + diagonal)
    return interleave(rows, size)


def _corners(y: jax.Array, fill: float) -> list[jax.Array]:
    """Return y, and y moved by one to the left, up and both: its windows on an odd pixel."""
    rows, columns = y.shape[1:3]
    y = jnp.pad(y, ((0, 0), (0, 1), (0, 1), (0, 0)), constant_values=fill)
    return [y[:, i : i + rows, j : j + columns] for i in (0, 1) for j in (0, 1)]


@jax.custom_jvp
def _max_pool_slices(x: jax.Array) -> jax.Array:
    return reduce(jnp.maximum, _windows(x, 2, -jnp.inf))


def _max_pool_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    y = _max_pool_slices(*primals)
    return y, tangent_of(y, (_pixels_of_maxima, _max_pool_gradient, primals, *tangents))


_max_pool_slices.defjvp(_max_pool_jvp, symbolic_zeros=True)


def _places_of_maxima(x: jax.Array) -> jax.Array:
    """Return the index in its window, 0 to 8, of the first maximum."""
    best, *others = _windows(x, 2, -jnp.inf)
    first = jnp.zeros(best.shape, jnp.int8)
    for i, pixel in enumerate(others, 1):
        larger = pixel > best
        best, first = jnp.where(larger, pixel, best), jnp.where(larger, jnp.int8(i), first)
    return first


def _pixels_of_maxima(x: jax.Array, dx: jax.Array) -> jax.Array:
    """Return the pixels of dx at the maxima of x."""
    first = _places_of_maxima(x)
    pixels = enumerate(_windows(dx, 2, 0))
    return reduce(jnp.add, [jnp.where(first == i, pixel, 0) for i, pixel in pixels])


def _max_pool_gradient(x: jax.Array, dy: jax.Array) -> jax.Array:
    """Gather, for every pixel, from the one, two or four windows around it, by its parity."""
    firsts = _corners(_places_of_maxima(x), -1)
    pairs = list(zip(firsts, _corners(dy, 0), strict=True))

    def gather(window: int, place: int) -> jax.Array:
        first, dy = pairs[window]
        return jnp.where(first == place, dy, 0)

    even = gather(0, 4), gather(0, 5) + gather(1, 3)
    odd = gather(0, 7) + gather(2, 1), gather(0, 8) + gather(1, 6) + gather(2, 2) + gather(3, 0)
    return interleave((even, odd), x.shape[1:3])
