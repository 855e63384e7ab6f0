"""Batch normalisation with the reference's running statistics."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype, Initializer
from jax import lax

from resnest_jax.errors import InputError

MODES = ("batch", "frozen", "folded")


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last, statistics in float32 at least.

    Unlike ``flax.linen.BatchNorm`` it keeps the *unbiased* running variance (n / (n - 1)), as the
    reference does (they differ most for 1x1 maps, where n is the batch). It does not normalise a
    single value, which would silently return the bias. Under ``jax.jit`` with a sharded batch the
    statistics are those of the global batch.

    Call with x (B, ..., C) and ``train``. Elements of the batch where ``mask`` (B,) bool is False
    do not count in the statistics of training.

    Attributes:
      mode: ``batch``; ``frozen``: running statistics, scale and bias are fixed, in training too;
        ``folded``: bias only, the rest is folded into the convolution before (inference only).
      groups: parts of the batch, each with its own statistics in training: 1 for the whole batch,
        the number of devices for statistics without synchronisation or communication. Running
        statistics are the mean over the parts.
      momentum: weight of the old running statistics; 0.9 here is 0.1 in torch.
      dtype: dtype of the output; parameters and running statistics are float32.

    Raises:
      InputError: in training, if there is one value per channel, the groups do not divide the
        batch, or the norm is folded.
    """

    mode: str = "batch"
    groups: int = 1
    momentum: float = 0.9
    epsilon: float = 1e-5
    dtype: Dtype = jnp.float32
    scale_init: Initializer = nn.initializers.ones

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool = False, mask: jax.Array | None = None
    ) -> jax.Array:
        channels = x.shape[-1:]
        wide = _wide(x)
        bias = self.param("bias", nn.initializers.zeros, channels, jnp.float32)
        if self.mode == "folded":
            if train:
                raise InputError("a model with folded batch norms cannot train; train it unfolded")
            return (x.astype(wide) + _along_last(bias, x.ndim)).astype(self.dtype)
        scale = self.param("scale", self.scale_init, channels, jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)

        shape = x.shape
        if train and self.mode == "batch":
            if self.groups > 1:
                x = self._split(x)
                mask = None if mask is None else self._split(mask)
            mean, var, unbiased = self._statistics(x, mask)
            if not self.is_initializing():
                m = self.momentum
                for running, new in ((running_mean, mean), (running_var, unbiased)):
                    new = new.reshape(-1, *channels).mean(0).astype(running.value.dtype)
                    running.value = m * running.value + (1 - m) * new
        else:
            stats = (running_mean.value, running_var.value)
            mean, var = (_along_last(value.astype(wide), x.ndim) for value in stats)
        if self.mode == "frozen":
            scale, bias = lax.stop_gradient((scale, bias))
        factor = _along_last(scale, x.ndim) * lax.rsqrt(var + self.epsilon)
        y = jax.checkpoint(_normalize)(x, mean, factor, _along_last(bias, x.ndim))
        return y.astype(self.dtype).reshape(shape)

    def _split(self, x: jax.Array) -> jax.Array:
        """Reshape (B, ...) -> (groups, B / groups, ...)."""
        if x.shape[0] % self.groups:
            raise InputError(
                f"norm_groups {self.groups} must divide the batch of {x.shape[0]} images"
            )
        return x.reshape(self.groups, -1, *x.shape[1:])

    def _statistics(
        self, x: jax.Array, mask: jax.Array | None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Return mean, variance and unbiased variance per group, with axes kept."""
        axes = tuple(range(1 if self.groups > 1 else 0, x.ndim - 1))
        count = math.prod(x.shape[axis] for axis in axes)
        if count < 2:
            raise InputError(
                f"{'/'.join(self.path)}: batch normalisation of an input of shape {x.shape} has a "
                "single value per channel; train with a batch size of at least 2 per group of "
                "statistics"
            )
        if mask is not None:
            mask = mask | ~jnp.any(mask, -1, keepdims=True)  # without any, all: no division by 0
            mask = mask.reshape(*mask.shape, *(1,) * (x.ndim - mask.ndim))
            values = jnp.sum(mask, axes, _wide(x), keepdims=True)
            count = values * (count // x.shape[axes[0]])
        mean = jnp.mean(x, axes, keepdims=True, dtype=_wide(x), where=mask)
        var = jnp.mean(jax.checkpoint(_square)(x, mean), axes, keepdims=True, where=mask)
        return mean, var, var * (count / (count - 1))


# What follows is computed again in the backward pass, from x: else its result would be stored too.
# Its tangents are those of the usual rule, in a form whose transpose sums over a map as few times
# as possible: XLA does not see that two of the sums are multiples of others.
@jax.custom_jvp
def _square(x: jax.Array, mean: jax.Array) -> jax.Array:
    """Return the squared distance from the mean over the same elements."""
    return lax.square(x.astype(_wide(x)) - mean)


@_square.defjvp
def _square_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    (x, mean), (dx, _) = primals, tangents  # the mean of x - mean is 0, and so is dmean's part
    return _square(x, mean), 2 * (x.astype(_wide(x)) - mean) * dx.astype(_wide(x))


@jax.custom_jvp
def _normalize(x: jax.Array, mean: jax.Array, factor: jax.Array, bias: jax.Array) -> jax.Array:
    return (x.astype(_wide(x)) - mean) * factor + bias


@_normalize.defjvp
def _normalize_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    (x, mean, factor, _), (dx, dmean, dfactor, dbias) = primals, tangents
    dy = dx.astype(_wide(x)) * factor + (x.astype(_wide(x)) - mean) * dfactor
    return _normalize(*primals), dy + (dbias - dmean * factor)


def _wide(x: jax.Array) -> jnp.dtype:
    """Return float32, or float64 for float64 input."""
    return jnp.promote_types(x.dtype, jnp.float32)


def _along_last(vector: jax.Array, ndim: int) -> jax.Array:
    """Reshape (C,) -> (1, ..., 1, C) explicitly, since broadcasting over ranks hides mistakes."""
    return vector.reshape((1,) * (ndim - 1) + (-1,))
