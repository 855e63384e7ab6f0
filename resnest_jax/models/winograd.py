"""3x3 convolution by Winograd's F(2x2, 3x3), arXiv 1509.09308: 16 products instead of 36.

From every 4x4 tile of the input, two pixels apart, 16 sums are taken; a matrix product each with
16 sums of the kernel gives 16 numbers a channel, whose sums are 2x2 outputs. All coefficients are
0, 1, -1 and 1/2, so that it is as precise as the direct form. Tiles go through in chunks that stay
in the cache.
"""

import os
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

KERNEL = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float32)
TILES_PER_CORE = 256  # in a chunk


def exists(kernel_shape: tuple[int, ...], strides: int, dilation: int) -> bool:
    """Whether there is a Winograd form of this convolution."""
    return kernel_shape[:2] == (3, 3) and strides == dilation == 1


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def conv3x3(x: jax.Array, kernel: jax.Array, groups: int = 1) -> jax.Array:
    """(B, H, W, C_in) and (3, 3, C_in / groups, C_out) to (B, H, W, C_out); stride, padding 1."""
    return convolve(x, [transform_kernel(part) for part in jnp.split(kernel, groups, -1)])


def _conv3x3_forward(x: jax.Array, kernel: jax.Array, groups: int) -> tuple:
    return conv3x3(x, kernel, groups), (x, kernel)


def _conv3x3_backward(groups: int, saved: tuple, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    backwards = [part[::-1, ::-1].swapaxes(2, 3) for part in jnp.split(kernel, groups, -1)]
    pairs = zip(jnp.split(x, groups, -1), jnp.split(dy, groups, -1), strict=True)
    dkernel = jnp.concatenate([kernel_gradient(*pair) for pair in pairs], -1)
    return conv3x3(dy, jnp.concatenate(backwards, -1), groups), dkernel


conv3x3.defvjp(_conv3x3_forward, _conv3x3_backward)


def kernel_gradient(x: jax.Array, dy: jax.Array) -> jax.Array:
    """Gradient of the 3x3 kernel: a matrix product for every place in it."""
    height, width = x.shape[1:3]
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))

    def product(i: int, j: int) -> jax.Array:
        return jnp.tensordot(x[:, i : i + height, j : j + width], dy, ((0, 1, 2), (0, 1, 2)))

    return jnp.stack([jnp.stack([product(i, j) for j in range(3)]) for i in range(3)])


def transform_kernel(kernel: jax.Array) -> jax.Array:
    """(3, 3, C_in, C_out) to the 16 kernels (16, C_in, C_out); of numpy, if the kernel is."""
    both_axes = np.kron(KERNEL, KERNEL).astype(kernel.dtype)
    return (both_axes @ kernel.reshape(9, -1)).reshape(16, *kernel.shape[2:])


def convolve(x: jax.Array, kernels: Sequence[jax.Array]) -> jax.Array:
    """Grouped convolution of (B, H, W, C_in), stride 1, padding 1, by a kernel a group.

    The kernels are transformed: (16, C_in / groups, C_out / groups).
    """

    def convolve_chunk(x: jax.Array) -> jax.Array:
        groups = jnp.split(x, len(kernels), -1)
        return jnp.concatenate([_convolve_group(*g) for g in zip(groups, kernels, strict=True)], -1)

    batch, height, width, _ = x.shape
    fitting = TILES_PER_CORE * os.cpu_count() // (-(-height // 2) * -(-width // 2))
    if not isinstance(batch, int) or batch <= fitting:  # the batch of an export is symbolic
        return convolve_chunk(x)
    chunk = max(n for n in range(1, max(fitting, 1) + 1) if batch % n == 0)

    def step(i: jax.Array, y: jax.Array) -> jax.Array:
        part = convolve_chunk(lax.dynamic_slice_in_dim(x, i * chunk, chunk))
        return lax.dynamic_update_slice_in_dim(y, part, i * chunk, 0)

    # All of y is overwritten. Constants would be made, and held, from the start of the program.
    y = jnp.full((batch, height, width, sum(k.shape[-1] for k in kernels)), x[0, 0, 0, 0])
    return lax.fori_loop(0, batch // chunk, step, y)


def _convolve_group(x: jax.Array, transformed: jax.Array) -> jax.Array:
    batch, height, width, channels = x.shape
    rows, columns = -(-height // 2), -(-width // 2)
    pad = ((0, 0), (1, 2 * rows + 1 - height), (1, 2 * columns + 1 - width), (0, 0))
    x = jnp.pad(x, pad)
    a, b, c, d = (x[:, i : i + 2 * rows - 1 : 2] for i in range(4))
    x = jnp.stack([a - c, b + c, c - b, b - d])  # (4, B, rows, 2 * columns + 2, C)
    a, b, c, d = (x[:, :, :, j : j + 2 * columns - 1 : 2] for j in range(4))
    x = jnp.stack([a - c, b + c, c - b, b - d], 1)  # (4, 4, B, rows, columns, C)

    y = lax.dot_general(x.reshape(16, -1, channels), transformed, (((2,), (1,)), ((0,), (0,))))
    a, b, c, d = y.reshape(4, 4, batch, rows, columns, -1)
    y = jnp.stack([a + b + c, b - c - d], 3)  # (4, B, rows, 2, columns, C)
    a, b, c, d = y
    y = jnp.stack([a + b + c, b - c - d], 4)  # (B, rows, 2, columns, 2, C)
    return y.reshape(batch, 2 * rows, 2 * columns, -1)[:, :height, :width]
