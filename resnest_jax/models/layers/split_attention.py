"""Split attention, radix-major (paper section 3.2): the form that the networks use."""

from collections.abc import Callable
from functools import reduce

import flax.linen as nn
import jax
import jax.numpy as jnp

from resnest_jax.errors import InputError
from resnest_jax.models.layers.activation import relu
from resnest_jax.models.layers.convolution import Conv
from resnest_jax.models.layers.normalization import BatchNorm


class SplitAttention(nn.Module):
    """Split-attention convolution (ResNeSt paper, section 3.1 and equation 3).

    A grouped convolution makes ``radix`` feature maps of ``features`` channels, the splits. Their
    sum is pooled, and two grouped dense layers give one weight per split and channel. The result
    is the weighted sum of the splits; nothing follows the sum.

    Channels of the feature maps are radix-major: index ``r * cardinality + k`` counts the groups.
    ``layers.cardinality_major`` computes the same function group by group.

    Call with x (B, H, W, C_in) and ``train``; returns (B, H / strides, W / strides, features) in
    the dtype of ``conv``. Collections: ``params``, ``batch_stats``; the attention is sown into
    ``intermediates`` as (B, radix, features).

    Attributes:
      features: C, output channels.
      radix: R >= 1, the number of splits per cardinal group. With one split the softmax over
        splits is a sigmoid.
      cardinality: K >= 1, the number of cardinal groups.
      reduction: the dense layers' hidden width is ``max(features * radix // reduction, 32)``,
        rounded up to a multiple of the cardinality.
      conv, norm: factories of the layers, for example ``functools.partial(Conv, dtype=...)``.

    Raises:
      InputError: if ``radix * cardinality`` does not divide the input channels, or the
        cardinality the output channels.
    """

    features: int
    radix: int = 2
    cardinality: int = 1
    kernel_size: int = 3
    strides: int = 1
    dilation: int = 1
    reduction: int = 4
    conv: Callable[..., nn.Module] = Conv
    norm: Callable[..., nn.Module] = BatchNorm

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        if self.radix < 1 or self.cardinality < 1 or self.features % self.cardinality:
            raise InputError(
                f"split attention of {self.features} features needs radix >= 1 and a cardinality "
                f"that divides them; got radix {self.radix}, cardinality {self.cardinality}"
            )
        x = self.conv(
            self.features * self.radix,
            kernel_size=self.kernel_size,
            strides=self.strides,
            dilation=self.dilation,
            groups=self.radix * self.cardinality,
            name="conv",
        )(x)
        x = relu(self.norm(name="bn0")(x, train))
        splits = jnp.split(x, self.radix, -1)

        pooled = jnp.mean(reduce(jnp.add, splits), (1, 2), keepdims=True)
        hidden = hidden_width(self.features, self.radix, self.cardinality, self.reduction)
        dense = {"groups": self.cardinality, "use_bias": True}
        gate = self.conv(hidden, **dense, name="fc1")(pooled)
        gate = relu(self.norm(name="bn1")(gate, train))
        gate = self.conv(self.features * self.radix, **dense, name="fc2")(gate)
        attention = radix_softmax(gate, self.radix, self.cardinality)
        self.sow("intermediates", "attention", attention)

        weights = jnp.split(attention[:, :, None, None], self.radix, 1)
        weighted = [split * jnp.squeeze(a, 1) for split, a in zip(splits, weights, strict=True)]
        return reduce(jnp.add, weighted)


def hidden_width(features: int, radix: int, cardinality: int, reduction: int) -> int:
    """Return the width between the two dense layers of the attention."""
    width = max(features * radix // reduction, 32)
    # Rounding changes no published model; it gives whole groups for any cardinality.
    return -(-width // cardinality) * cardinality


def radix_softmax(gate: jax.Array, radix: int, cardinality: int) -> jax.Array:
    """Apply softmax over the splits of each cardinal group (equation 4); a sigmoid for one split.

    The gate (B, 1, 1, K * R * c) is cardinality-major, as a grouped layer makes it; the result
    (B, R, K * c) is radix-major, as the feature maps are. It is computed in float32 at least.
    """
    batch, channels, dtype = gate.shape[0], gate.shape[-1] // radix, gate.dtype
    gate = gate.reshape(batch, cardinality, radix, channels // cardinality)
    gate = gate.astype(jnp.promote_types(dtype, jnp.float32))
    gate = nn.softmax(gate, 2) if radix > 1 else nn.sigmoid(gate)
    return gate.swapaxes(1, 2).reshape(batch, radix, channels).astype(dtype)
