"""A network of the package's layers that compiles fast."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from resnest_jax.models.layers.convolution import Conv
from resnest_jax.models.layers.normalization import BatchNorm
from resnest_jax.tasks.classification.task import Classification


class SmallNet(nn.Module):
    """Images (B, H, W, 3) to float32 logits (B, num_classes); called as ``ResNeSt`` is."""

    num_classes: int = 10
    norm: str = "batch"
    norm_groups: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train=False, progress=1.0):
        for i in range(1, 4):
            x = Conv(16, kernel_size=3, strides=2, dtype=self.dtype, name=f"conv{i}")(x)
            norm = BatchNorm(self.norm, self.norm_groups, dtype=self.dtype, name=f"bn{i}")
            x = nn.relu(norm(x, train))
        x = jnp.mean(x, (1, 2), dtype=jnp.float32)
        return nn.Dense(self.num_classes, name="head")(x)


def small_task(**fields):
    """Classification of images of 32 pixels into ten classes."""
    return Classification(SmallNet(**fields), 10, 32)
