"""The units that the paper compares with split attention (figure 2): SE and SK."""

from collections.abc import Callable
from functools import reduce

import flax.linen as nn
import jax
import jax.numpy as jnp

from resnest_jax.models.layers.activation import relu
from resnest_jax.models.layers.convolution import Conv
from resnest_jax.models.layers.normalization import BatchNorm


class SqueezeExcitation(nn.Module):
    """Channel attention by a sigmoid gate (Hu et al., arXiv 1709.01507); keeps (B, H, W, C).

    Attributes:
      reduction: the hidden width is ``C / reduction``, rounded to a multiple of 8.
    """

    reduction: int = 16
    conv: Callable[..., nn.Module] = Conv

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        gate = jnp.mean(x, (1, 2), keepdims=True)
        hidden = round_to_eight(channels / self.reduction)
        gate = relu(self.conv(hidden, use_bias=True, name="fc1")(gate))
        gate = self.conv(channels, use_bias=True, name="fc2")(gate)
        return x * nn.sigmoid(gate)


class SelectiveKernel(nn.Module):
    """Attention over two kernel sizes (Li et al., arXiv 1903.06586), 3x3 plain and dilated by 2.

    Each path gets half of the input channels, as in timm's skresnet50. x (B, H, W, C_in) ->
    (B, H / strides, W / strides, features).

    Attributes:
      reduction: the hidden width is ``features / reduction``, rounded to a multiple of 8.
    """

    features: int
    strides: int = 1
    dilation: int = 1
    reduction: int = 16
    conv: Callable[..., nn.Module] = Conv
    norm: Callable[..., nn.Module] = BatchNorm

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        paths = []
        for i, half in enumerate(jnp.split(x, 2, -1), 1):
            y = self.conv(
                self.features,
                kernel_size=3,
                strides=self.strides,
                dilation=i * self.dilation,
                name=f"conv{i}",
            )(half)
            paths.append(relu(self.norm(name=f"bn{i}")(y, train)))
        gate = jnp.mean(reduce(jnp.add, paths), (1, 2), keepdims=True)
        hidden = round_to_eight(self.features / self.reduction)
        gate = self.conv(hidden, name="conv_reduce")(gate)
        gate = relu(self.norm(name="bn_reduce")(gate, train))
        gate = self.conv(2 * self.features, name="conv_select")(gate)
        gate = gate.reshape(-1, 1, 1, 2, self.features)
        wide = gate.astype(jnp.promote_types(gate.dtype, jnp.float32))
        attention = nn.softmax(wide, 3).astype(gate.dtype)
        weights = [jnp.squeeze(a, 3) for a in jnp.split(attention, 2, 3)]
        return reduce(jnp.add, [path * a for path, a in zip(paths, weights, strict=True)])


def round_to_eight(width: float) -> int:
    """Round to the nearest positive multiple of 8, at most a tenth below the width."""
    rounded = max(8, int(width + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * width else rounded
