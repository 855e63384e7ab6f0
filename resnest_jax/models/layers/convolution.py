"""Convolution: one parameter layout, several implementations, selected only here."""

import math
from collections.abc import Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype, Initializer

from resnest_jax.errors import InputError
from resnest_jax.models.layers import winograd
from resnest_jax.models.layers.dilation import by_taps, on_phases
from resnest_jax.models.layers.direct import direct, padded
from resnest_jax.models.layers.linear import tangent_of
from resnest_jax.models.layers.platforms import ONNX, target

IMPLEMENTATIONS = ("grouped", "split", "padded", "winograd", "patches", "taps")

# The authors' initialisation: a normal that is not truncated, fan-out k * k * features.
conv_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def uniform_init(fan_in: int) -> Initializer:
    """Make U(-1/sqrt(fan_in), 1/sqrt(fan_in)): torch's default for dense kernels and biases."""
    bound = 1 / math.sqrt(fan_in)

    def init(key: jax.Array, shape: Sequence[int], dtype: Dtype = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class Conv(nn.Module):
    """2-D convolution with symmetric integer padding ``dilation * (kernel_size - 1) // 2``.

    ``'SAME'`` would pad even inputs asymmetrically at stride 2, unlike the reference. For every
    implementation the kernel is stored as (kernel_size, kernel_size, C_in / groups, features),
    output channels in group order.

    Attributes:
      features: output channels, a multiple of ``groups``.
      groups: number of groups; divides the input channels too.
      implementation: that of a grouped convolution, see ``conv2d``.
      platform: target platform, see ``layers.platforms.on_cpu``.
      dtype: dtype of the computation; parameters are float32.
      bias_init: None is torch's default.

    Raises:
      InputError: if ``groups`` does not divide the channels.
    """

    features: int
    kernel_size: int = 1
    strides: int = 1
    dilation: int = 1
    groups: int = 1
    use_bias: bool = False
    implementation: str = "auto"
    platform: str | None = None
    dtype: Dtype = jnp.float32
    kernel_init: Initializer = conv_init
    bias_init: Initializer | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        in_channels = x.shape[-1]
        if in_channels % self.groups or self.features % self.groups:
            raise InputError(
                f"{self.name or 'Conv'}: {self.groups} groups (radix x cardinality in a split "
                f"attention) must divide the {in_channels} input and {self.features} output "
                "channels; choose another radix, cardinality or width"
            )
        fan_in = in_channels // self.groups
        x = x.astype(self.dtype)
        if self.has_variable("params", "winograd"):
            kernels = self.get_variable("params", "winograd")
            x = winograd.convolve(x, [kernel.astype(self.dtype) for kernel in kernels])
        else:
            shape = (self.kernel_size, self.kernel_size, fan_in, self.features)
            kernel = self.param("kernel", self.kernel_init, shape, jnp.float32).astype(self.dtype)
            settings = (self.strides, self.dilation, self.groups)
            x = conv2d(x, kernel, *settings, self.implementation, self.platform)
        if self.use_bias:
            init = self.bias_init or uniform_init(fan_in * self.kernel_size**2)
            bias = self.param("bias", init, (self.features,), jnp.float32).astype(self.dtype)
            x = x + bias[None, None, None]
        return x


def conv2d(
    x: jax.Array,
    kernel: jax.Array,
    strides: int = 1,
    dilation: int = 1,
    groups: int = 1,
    implementation: str = "auto",
    platform: str | None = None,
) -> jax.Array:
    """Convolve (B, H, W, C_in) in groups with an HWIO kernel of (k, k, C_in / groups, C_out).

    All implementations give the same value up to rounding:
      ``grouped``: XLA's own grouped convolution;
      ``split``: one dense convolution per group, which is on XLA:CPU's fast path forward and
        backward;
      ``padded``: the same in the forms that XLA:CPU does fast, in calls and loops too; without
        strides there is one row of padding more, whose output is dropped;
      ``winograd``: Winograd's algorithm per group (``layers.winograd``) for 3x3 without strides, on
        every d-th pixel if it is dilated; ``split`` for others;
      ``patches``: the pixels under the kernel concatenated, and one matrix product per group;
      ``taps``: the sum of a matrix product per entry of the kernel and group, for one without
        strides; ``split`` for others;
      ``auto``: the fastest on ``platform``: measured on CPU, XLA's estimate for TPU.
    Three names, such as ``"padded,padded,winograd"``, select those of forward, input gradient and
    kernel gradient. A 1x1 convolution is always one matrix product per group, but for platform
    ``onnx`` a convolution.

    Raises:
      InputError: if ``implementation`` is none of these.
    """
    check_implementation(implementation)
    if kernel.shape[:2] == (1, 1) and platform != ONNX:
        return _pointwise(x[:, ::strides, ::strides], kernel[0, 0], groups)
    settings = (strides, dilation, groups)
    if implementation == "auto":
        implementation = _fastest(x, kernel.shape, *settings, target(platform))
    if "," in implementation:
        return _mixed(x, kernel, settings, tuple(implementation.split(",")))
    return _run(x, kernel, settings, implementation)


def check_implementation(implementation: str) -> None:
    """Raise InputError if the implementation is unknown."""
    names = implementation.split(",") if isinstance(implementation, str) else []
    known = len(names) in (1, 3) and set(names) <= set(IMPLEMENTATIONS)
    if implementation != "auto" and not known:
        raise InputError(
            f"model field implementation must be 'auto', one of {IMPLEMENTATIONS}, or three of "
            f"these separated by commas; got {implementation!r}"
        )


def _fastest(
    x: jax.Array,
    kernel_shape: tuple[int, ...],
    strides: int,
    dilation: int,
    groups: int,
    platform: str,
) -> str:
    """Choose for a shape, as ``experiments.benchmark --layers`` and ``experiments.scaling`` say."""
    if groups > 8 or platform not in ("cpu", "tpu"):
        return "grouped"
    if platform == "tpu":
        return "split"
    batch, height, width, in_channels = x.shape
    kernel_size, _, group_channels, _ = kernel_shape
    if in_channels <= 4 and kernel_size == 3:
        return "patches"
    if not isinstance(height, int) or not isinstance(width, int):  # symbolic, in an export
        return "padded"
    precise = x.dtype == jnp.float32  # sums of products would lose bits of smaller dtypes
    if precise and kernel_size == 3 and strides == 1 and _few_taps(height, width, dilation):
        return "taps"
    one_device = jax.device_count() == 1  # winograd's chunks would slice a sharded batch
    fixed = isinstance(batch, int)  # the batch of an export is symbolic
    allowed = one_device and fixed and precise
    if not (allowed and winograd.exists(kernel_shape, strides)):
        return "padded"
    # For fewer pixels transforming the kernel takes too long; larger maps do not fit the cache.
    enough = batch * height * width >= 256
    both = group_channels, kernel_shape[-1] // groups
    if enough and min(both) >= 32 and max(both) >= 64 and height * width <= 128**2:
        return "winograd" if height * width <= 64**2 else "padded,winograd,winograd"
    return "padded,padded,winograd" if enough and group_channels >= 24 else "padded"


def _run(x: jax.Array, kernel: jax.Array, settings: tuple, implementation: str) -> jax.Array:
    """Convolve with one implementation, from which the gradients follow."""
    strides, dilation, groups = settings
    if implementation == "grouped":
        return direct(x, kernel, *settings)
    if implementation == "winograd" and winograd.exists(kernel.shape, strides):
        if dilation == 1:
            return winograd.conv3x3(x, kernel, groups)
        return on_phases(lambda x: winograd.conv3x3(x, kernel, groups), x, dilation)
    form = {"patches": _patches, "padded": padded}.get(implementation, direct)
    form = partial(form, strides=strides, dilation=dilation)
    if implementation == "taps" and strides == 1:
        form = partial(by_taps, dilation=dilation)
    if groups == 1:
        return form(x, kernel)
    pairs = zip(jnp.split(x, groups, -1), jnp.split(kernel, groups, -1), strict=True)
    return jnp.concatenate([form(*pair) for pair in pairs], -1)


@partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _mixed(x: jax.Array, kernel: jax.Array, settings: tuple, forms: tuple) -> jax.Array:
    """Convolve with one implementation for the value and one for each gradient."""
    return _run(x, kernel, settings, forms[0])


def _mixed_jvp(settings: tuple, forms: tuple, primals: tuple, tangents: tuple) -> tuple:
    value, of_x, of_kernel = (
        partial(_run, settings=settings, implementation=implementation) for implementation in forms
    )

    def x_gradient(x: jax.Array, kernel: jax.Array, dy: jax.Array) -> jax.Array:
        return jax.vjp(lambda x: of_x(x, kernel), x)[1](dy)[0]

    def kernel_gradient(x: jax.Array, kernel: jax.Array, dy: jax.Array) -> jax.Array:
        return jax.vjp(lambda kernel: of_kernel(x, kernel), kernel)[1](dy)[0]

    y = _mixed(*primals, settings, forms)
    dx, dkernel = tangents
    return y, tangent_of(
        y,
        (lambda x, kernel, dx: value(dx, kernel), x_gradient, primals, dx),
        (lambda x, kernel, dkernel: value(x, dkernel), kernel_gradient, primals, dkernel),
    )


_mixed.defjvp(_mixed_jvp, symbolic_zeros=True)


def _few_taps(height: int, width: int, dilation: int) -> bool:
    """Return whether a third of the products of a dilated 3x3 kernel are with pixels outside."""
    inside = [1 + 2 * max(length - dilation, 0) / length for length in (height, width)]
    return dilation > 1 and inside[0] * inside[1] <= 6


def _patches(x: jax.Array, kernel: jax.Array, strides: int, dilation: int) -> jax.Array:
    """Concatenate rows of pixels, then columns, which copies contiguous memory; then multiply."""
    size = kernel.shape[0]
    reach = dilation * (size - 1)
    height, width = ((n - 1) // strides * strides + 1 for n in x.shape[1:3])
    x = jnp.pad(x, ((0, 0), (reach // 2, reach // 2), (reach // 2, reach // 2), (0, 0)))
    taps = range(0, reach + 1, dilation)
    x = jnp.concatenate([x[:, i : i + height : strides] for i in taps], -1)
    x = jnp.concatenate([x[:, :, j : j + width : strides] for j in taps], -1)
    return _pointwise(x, kernel.swapaxes(0, 1).reshape(-1, kernel.shape[-1]), groups=1)


def _pointwise(x: jax.Array, kernel: jax.Array, groups: int) -> jax.Array:
    """Convolve (B, H, W, C_in) 1x1 with (C_in / groups, C_out): one matrix product per group."""
    shape = x.shape[:-1]
    if groups == 1:
        # Of matrices: the gradient of a product over 3 axes would transpose whole feature maps.
        return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*shape, kernel.shape[-1])
    features = kernel.shape[-1]
    x = x.reshape(-1, groups, x.shape[-1] // groups)
    kernel = kernel.reshape(kernel.shape[0], groups, -1)
    return jnp.einsum("ngi,igo->ngo", x, kernel).reshape(*shape, features)
