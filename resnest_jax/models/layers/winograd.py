"""3x3 convolution by Winograd's F(2x2, 3x3), arXiv 1509.09308: 16 products instead of 36.

Every 4x4 tile of the input, at a stride of two pixels, gives 16 sums. 16 matrix products of these
with 16 sums of the kernel give 16 numbers per channel, whose sums are 2x2 outputs. All coefficients
are 0, 1, -1 and 1/2, so this is as precise as the direct form. Tiles are computed in chunks that
stay in the cache.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from resnest_jax.models.layers.linear import tangent_of
from resnest_jax.models.layers.parity import interleave

KERNEL = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float32)
# Of the four sums of an axis. A reversed kernel has the same ones, the first and the last swapped.
PLAIN, REVERSED = (0, 1, 2, 3), (3, 1, 2, 0)
# Per chunk; it does not depend on the number of cores, as sums would then round differently.
CHUNK_TILES = 512

Kernel = TypeVar("Kernel", jax.Array, np.ndarray)


def exists(kernel_shape: tuple[int, ...], strides: int) -> bool:
    """Return whether this convolution has a Winograd form."""
    return kernel_shape[:2] == (3, 3) and strides == 1


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def conv3x3(x: jax.Array, kernel: jax.Array, groups: int = 1) -> jax.Array:
    """Convolve (B, H, W, C_in) with (3, 3, C_in / groups, C_out); stride and padding 1."""
    return convolve(x, _transform(kernel, groups))


def _conv3x3_jvp(groups: int, primals: tuple, tangents: tuple) -> tuple:
    x, kernel = primals

    def of_x(*args: jax.Array) -> jax.Array:
        *kernels, dx = args
        return convolve(dx, kernels)

    def x_gradient(*args: jax.Array) -> jax.Array:
        *kernels, dy = args
        return convolve(dy, [k.swapaxes(1, 2) for k in kernels], REVERSED)

    def of_kernel(x: jax.Array, dkernel: jax.Array) -> jax.Array:
        return convolve(x, _transform(dkernel, groups))

    y = conv3x3(x, kernel, groups)
    dx, dkernel = tangents
    return y, tangent_of(
        y,
        (of_x, x_gradient, _transform(kernel, groups), dx),
        (of_kernel, partial(kernel_gradient, groups=groups), (x,), dkernel),
    )


conv3x3.defjvp(_conv3x3_jvp, symbolic_zeros=True)


def _transform(kernel: jax.Array, groups: int) -> list[jax.Array]:
    return [transform_kernel(part) for part in jnp.split(kernel, groups, -1)]


def transform_kernel(kernel: Kernel) -> Kernel:
    """Transform (3, 3, C_in, C_out) to 16 kernels (16, C_in, C_out); NumPy stays NumPy."""
    both_axes: Any = np.kron(KERNEL, KERNEL).astype(kernel.dtype)
    return (both_axes @ kernel.reshape(9, -1)).reshape(16, *kernel.shape[2:])


def convolve(x: jax.Array, kernels: Sequence[jax.Array], order: Sequence[int] = PLAIN) -> jax.Array:
    """Convolve (B, H, W, C_in), stride 1, padding 1, with one kernel per group.

    The kernels are transformed: (16, C_in / groups, C_out / groups). With ``REVERSED`` they are
    those of the kernels reversed along both axes.
    """

    def convolve_chunk(x: jax.Array) -> list[jax.Array]:
        parts = zip(jnp.split(x, len(kernels), -1), kernels, strict=True)
        return [outputs(product(tiles(x, order), k), x.shape, order) for x, k in parts]

    def step(i: jax.Array, y: jax.Array) -> jax.Array:
        parts = convolve_chunk(lax.dynamic_slice_in_dim(x, i * chunk, chunk))
        # Group by group: XLA joins a whole chunk by one thread, ten times as slowly as it copies.
        for group, part in enumerate(parts):
            y = lax.dynamic_update_slice(y, part, (i * chunk, 0, 0, group * part.shape[-1]))
        return y

    chunk = _chunk(x.shape)
    if chunk == x.shape[0]:
        return jnp.concatenate(convolve_chunk(x), -1)
    # All of y is overwritten. A constant would take memory from the start of the program.
    y = jnp.full((*x.shape[:3], sum(k.shape[-1] for k in kernels)), x[0, 0, 0, 0])
    return lax.fori_loop(0, x.shape[0] // chunk, step, y)


def kernel_gradient(x: jax.Array, dy: jax.Array, groups: int) -> jax.Array:
    """Return the gradient of the kernel (3, 3, C_in / groups, C_out), summed transformed."""

    def gradient(x: jax.Array, dy: jax.Array) -> jax.Array:
        return lax.dot_general(tiles(x), output_tiles(dy), (((1,), (1,)), ((0,), (0,))))

    def gradients(x: jax.Array, dy: jax.Array) -> list[jax.Array]:
        pairs = zip(jnp.split(x, groups, -1), jnp.split(dy, groups, -1), strict=True)
        return [gradient(*pair) for pair in pairs]

    def step(i: jax.Array, sums: list[jax.Array]) -> list[jax.Array]:
        part = (lax.dynamic_slice_in_dim(a, i * chunk, chunk) for a in (x, dy))
        return [a + b for a, b in zip(sums, gradients(*part), strict=True)]

    chunk = _chunk(x.shape)
    if chunk == x.shape[0]:
        sums = gradients(x, dy)
    else:
        # All in the loop: a first chunk outside would be transformed in the forward pass, and wait.
        size = (16, x.shape[-1] // groups, dy.shape[-1] // groups)
        zeros = [jnp.zeros(size, x.dtype)] * groups
        sums = lax.fori_loop(0, x.shape[0] // chunk, step, zeros)
    both_axes = np.kron(KERNEL, KERNEL).T.astype(x.dtype)
    kernels = [(both_axes @ s.reshape(16, -1)).reshape(3, 3, *s.shape[1:]) for s in sums]
    return jnp.concatenate(kernels, -1)


def _chunk(shape: tuple[int, ...]) -> int:
    """Return the images per chunk: a divisor of the batch, or all of a symbolic one."""
    batch, height, width, _ = shape
    fitting = CHUNK_TILES // (-(-height // 2) * -(-width // 2))
    if not isinstance(batch, int) or batch <= fitting:
        return batch
    return max(n for n in range(1, max(fitting, 1) + 1) if batch % n == 0)


def tiles(x: jax.Array, order: Sequence[int] = PLAIN) -> jax.Array:
    """Transform (B, H, W, C), padded by one pixel, to the sums (16, tiles, C) of its 4x4 tiles."""

    def sums(a: jax.Array, b: jax.Array, c: jax.Array, d: jax.Array) -> list[jax.Array]:
        four = a - c, b + c, c - b, b - d
        return [four[i] for i in order]

    _, height, width, channels = x.shape
    rows, columns = -(-height // 2), -(-width // 2)
    pad = ((0, 0), (1, 2 * rows + 1 - height), (1, 2 * columns + 1 - width), (0, 0))
    x = jnp.pad(x, pad)
    x = jnp.stack(sums(*(x[:, i : i + 2 * rows - 1 : 2] for i in range(4))))
    # (4, B, rows, 2 * columns + 2, C)
    x = jnp.stack(sums(*(x[:, :, :, j : j + 2 * columns - 1 : 2] for j in range(4))), 1)
    return x.reshape(16, -1, channels)


def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Multiply (16, tiles, C_in) by (16, C_in, C_out) to (16, tiles, C_out)."""
    return lax.dot_general(x, kernel, (((2,), (1,)), ((0,), (0,))))


def outputs(y: jax.Array, shape: tuple[int, ...], order: Sequence[int] = PLAIN) -> jax.Array:
    """Transform the products (16, tiles, C) to (B, H, W, C), joining the 2x2 outputs of tiles."""
    batch, height, width, _ = shape
    rows, columns = -(-height // 2), -(-width // 2)

    def pair(products: jax.Array) -> tuple:
        a, b, c, d = (products[i] for i in order)
        return a + b + c, b - c - d

    upper, lower = pair(y.reshape(4, 4, batch, rows, columns, y.shape[-1]))
    return interleave((pair(upper), pair(lower)), (height, width))


def output_tiles(dy: jax.Array) -> jax.Array:
    """Apply the transpose of ``outputs``: (B, H, W, C) to (16, tiles, C)."""
    _, height, width, channels = dy.shape
    dy = jnp.pad(dy, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
    a, b = dy[:, ::2], dy[:, 1::2]
    dy = jnp.stack([a, a + b, a - b, -b])  # (4, B, rows, 2 * columns, C)
    a, b = dy[:, :, :, ::2], dy[:, :, :, 1::2]
    return jnp.stack([a, a + b, a - b, -b], 1).reshape(16, -1, channels)
