"""What a model costs, counted from the model itself."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from resnest_jax.models.convolution import Conv
from resnest_jax.models.normalization import BatchNorm
from resnest_jax.models.resnest import ResNeSt


def count_parameters(model: ResNeSt, channels: int = 3) -> int:
    """Trainable parameters, for images of so many channels."""
    images = jax.ShapeDtypeStruct((1, 64, 64, channels), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))


def count_macs(model: ResNeSt, size: int, channels: int = 3) -> int:
    """Multiply-adds for one image of ``size`` x ``size`` pixels, as the paper's tables count them.

    That is fvcore's convention: convolutions, dense layers, and two for every value normalised;
    sums, pools and the weighting of the splits are not counted.
    """
    macs = 0

    def count(next_call, args, kwargs, context):
        nonlocal macs
        out = next_call(*args, **kwargs)
        module = context.module
        if context.method_name == "__call__":
            if isinstance(module, Conv):
                fan_in = args[0].shape[-1] // module.groups
                macs += out.size * fan_in * module.kernel_size**2
            elif isinstance(module, nn.Dense):
                macs += out.size * args[0].shape[-1]
            elif isinstance(module, BatchNorm):
                macs += 2 * out.size
        return out

    with nn.intercept_methods(count):
        images = jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32)
        jax.eval_shape(model.init, jax.random.key(0), images)
    return macs
