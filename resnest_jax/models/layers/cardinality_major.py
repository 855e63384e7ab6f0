"""Split attention, cardinality-major (paper section 3.1), written as in the paper.

The networks use the radix-major form in ``split_attention``; this one is its specification.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from resnest_jax.models.layers.activation import relu
from resnest_jax.models.layers.convolution import Conv
from resnest_jax.models.layers.normalization import BatchNorm
from resnest_jax.models.layers.split_attention import hidden_width


class CardinalGroup(nn.Module):
    """One cardinal group: split attention over R feature-map groups, (B, H, W, C/K) each."""

    features: int  # c = C / K
    radix: int
    hidden: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        # U_1 .. U_R: each split transforms its own slice of the input (F_i in the paper).
        u = Conv(self.radix * self.features, kernel_size=3, groups=self.radix, name="conv")(x)
        u = relu(BatchNorm(name="bn0")(u, train))
        u = u.reshape(*u.shape[:3], self.radix, self.features)
        # s: global average pool of the sum of the splits (equation 1).
        s = u.sum(3).mean((1, 2), keepdims=True)
        # G: two dense layers; a: softmax over the splits, per channel (equation 3).
        z = Conv(self.hidden, use_bias=True, name="fc1")(s)
        z = relu(BatchNorm(name="bn1")(z, train))
        z = Conv(self.radix * self.features, use_bias=True, name="fc2")(z)
        z = z.reshape(-1, 1, 1, self.radix, self.features)
        a = nn.softmax(z, 3) if self.radix > 1 else nn.sigmoid(z)
        # V: the weighted sum of the splits (equation 2).
        return (a * u).sum(3)


class CardinalSplitAttention(nn.Module):
    """All cardinal groups: ``CardinalGroup`` mapped over slices of the channels.

    Same function as ``SplitAttention`` (3x3, stride 1, float32) up to the order of the channels:
    x (B, H, W, C_in) -> (B, H, W, features). Parameters have a leading axis of K groups.
    """

    features: int
    radix: int = 2
    cardinality: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        k = self.cardinality
        x = x.reshape(*x.shape[:3], k, -1)
        axes: Any = (3, None)  # Any, as flax's annotation allows only integers
        groups = nn.vmap(
            CardinalGroup,
            in_axes=axes,
            out_axes=3,
            variable_axes={"params": 0, "batch_stats": 0},
            split_rngs={"params": True},
        )
        hidden = hidden_width(self.features, self.radix, k, 4) // k
        x = groups(self.features // k, self.radix, hidden, name="groups")(x, train)
        # The concatenation of the groups (section 3.1) is a reshape.
        return x.reshape(*x.shape[:3], -1)


def input_permutation(channels: int, radix: int, cardinality: int) -> np.ndarray:
    """Return the radix-major index of each cardinality-major channel of conv1, (channels,)."""
    order = np.arange(channels).reshape(radix, cardinality, -1)
    return order.transpose(1, 0, 2).ravel()


def from_radix_major(variables: dict, radix: int, cardinality: int) -> dict:
    """Convert variables of ``SplitAttention`` to those of ``CardinalSplitAttention``.

    The two modules are then the same function if the cardinality-major one gets its input channels
    in the order of ``input_permutation``; the output channels have the same order in both.
    """

    def group_first(path: tuple, leaf: jax.Array) -> jax.Array:
        layer = path[1].key
        if layer in ("conv", "bn0"):
            order = input_permutation(leaf.shape[-1], radix, cardinality)
            leaf = leaf[..., order]
        leaf = leaf.reshape(*leaf.shape[:-1], cardinality, -1)
        return jnp.moveaxis(leaf, -2, 0)

    moved = jax.tree_util.tree_map_with_path(group_first, variables)
    return {collection: {"groups": tree} for collection, tree in moved.items()}
