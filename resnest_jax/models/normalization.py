"""Batch normalisation with the reference's running statistics."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype, Initializer
from jax import lax

from resnest_jax.errors import InputError


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last, statistics in float32.

    Unlike ``flax.linen.BatchNorm`` it keeps the *unbiased* running variance (n / (n - 1)), as the
    reference does (it shows where the maps are 1x1, so that n is the batch), and refuses to
    normalise a single value, which would silently return the bias. Under ``jax.jit`` with a
    sharded batch the statistics are those of the global batch.

    Attributes:
      momentum: weight of the old running statistics; 0.9 is the 0.1 of torch.
      dtype: dtype of the output; parameters and statistics are float32.

    Raises:
      InputError: in training, if there is one value a channel.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    dtype: Dtype = jnp.float32
    scale_init: Initializer = nn.initializers.ones

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        channels = x.shape[-1:]
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels)
        scale = self.param("scale", self.scale_init, channels)
        bias = self.param("bias", nn.initializers.zeros, channels)

        if train:
            count = math.prod(x.shape[:-1])
            if count < 2:
                raise InputError(
                    f"{'/'.join(self.path)}: batch normalisation of an input of shape {x.shape} "
                    "has a single value a channel; train with a batch size of at least 2"
                )
            axes = tuple(range(x.ndim - 1))
            mean = jnp.mean(x, axes, dtype=jnp.float32)
            centred = x.astype(jnp.float32) - _along_last(mean, x.ndim)
            var = jnp.mean(lax.square(centred), axes)
            if not self.is_initializing():
                m = self.momentum
                running_mean.value = m * running_mean.value + (1 - m) * mean
                running_var.value = m * running_var.value + (1 - m) * var * (count / (count - 1))
        else:
            mean, var = running_mean.value, running_var.value

        factor = scale * lax.rsqrt(var + self.epsilon)
        y = (x.astype(jnp.float32) - _along_last(mean, x.ndim)) * _along_last(factor, x.ndim)
        return (y + _along_last(bias, x.ndim)).astype(self.dtype)


def _along_last(vector: jax.Array, ndim: int) -> jax.Array:
    """(C,) -> (1, ..., 1, C): explicit, since broadcasting over ranks hides mistakes."""
    return vector.reshape((1,) * (ndim - 1) + (-1,))
