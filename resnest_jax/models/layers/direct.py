"""XLA's own convolution, and the form of it that is fast on XLA:CPU."""

from collections.abc import Sequence
from functools import partial

import jax
from jax import lax

from resnest_jax.models.layers.linear import tangent_of

LAYOUT = ("NHWC", "HWIO", "NHWC")


def direct(
    x: jax.Array, kernel: jax.Array, strides: int, dilation: int, groups: int = 1, below: int = 0
) -> jax.Array:
    """Convolve with XLA's own convolution; ``below`` is the number of output rows more."""
    pad = _before(kernel, dilation)
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(strides, strides),
        padding=((pad, pad + below), (pad, pad)),
        rhs_dilation=(dilation, dilation),
        dimension_numbers=LAYOUT,
        feature_group_count=groups,
    )


@partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def padded(x: jax.Array, kernel: jax.Array, strides: int, dilation: int) -> jax.Array:
    """Convolve with gradients whose operands have the layout of XLA:CPU's fast routines.

    XLA brings those of a convolution into it by itself, but not in a call or a loop. Where input
    and output are equally large, one row more is computed: else XLA:CPU would use YNN, on one core.
    """
    below = _rows_more(kernel, strides)
    y = direct(x, kernel, strides, dilation, below=below)
    return y[:, : x.shape[1]] if below else y


@partial(padded.defjvp, symbolic_zeros=True)
def _padded_jvp(strides: int, dilation: int, primals: tuple, tangents: tuple) -> tuple:
    x, kernel = primals
    size, height, width = kernel.shape[0], *x.shape[1:3]
    before = _before(kernel, dilation)

    def x_gradient(kernel: jax.Array, dy: jax.Array) -> jax.Array:
        kernel = kernel[::-1, ::-1].swapaxes(2, 3)
        rest = dilation * (size - 1) - before
        rows = height + _rows_more(kernel, strides)
        dx = _convolve(dy, kernel, (rows, width), rest, spread=strides, dilation=dilation)
        return dx[:, :height]

    def kernel_gradient(x: jax.Array, dy: jax.Array) -> jax.Array:
        x, dy = x.transpose(3, 1, 2, 0), dy.transpose(1, 2, 0, 3)
        shape = size, size
        gradient = _convolve(x, dy, shape, before, strides=dilation, dilation=strides)
        return gradient.transpose(1, 2, 0, 3)

    def of_x(kernel: jax.Array, dx: jax.Array) -> jax.Array:
        return padded(dx, kernel, strides, dilation)

    def of_kernel(x: jax.Array, dkernel: jax.Array) -> jax.Array:
        return padded(x, dkernel, strides, dilation)

    y = padded(x, kernel, strides, dilation)
    dx, dkernel = tangents
    return y, tangent_of(
        y,
        (of_x, x_gradient, (kernel,), dx),
        (of_kernel, kernel_gradient, (x,), dkernel),
    )


def _convolve(
    x: jax.Array,
    kernel: jax.Array,
    size: Sequence[int],
    before: int,
    strides: int = 1,
    spread: int = 1,
    dilation: int = 1,
) -> jax.Array:
    """Convolve to maps of ``size``; pixels of x, with zeros before, lie ``spread`` apart."""
    after = [
        (out - 1) * strides + dilation * (k - 1) - spread * (n - 1) - before
        for out, k, n in zip(size, kernel.shape[:2], x.shape[1:3], strict=True)
    ]
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(strides, strides),
        padding=[(before, end) for end in after],
        lhs_dilation=(spread, spread),
        rhs_dilation=(dilation, dilation),
        dimension_numbers=LAYOUT,
    )


def _before(kernel: jax.Array, dilation: int) -> int:
    """Return the rows or columns of zeros before an image."""
    return dilation * (kernel.shape[0] - 1) // 2


def _rows_more(kernel: jax.Array, strides: int) -> int:
    """Return 1 where the output would be as large as the input."""
    return int(strides == 1 and kernel.shape[0] % 2)
