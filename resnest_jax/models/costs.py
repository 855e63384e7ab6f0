"""What a model costs, counted from the model itself."""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.module import InterceptorContext

from resnest_jax.errors import InputError
from resnest_jax.models.layers.convolution import Conv
from resnest_jax.models.layers.normalization import BatchNorm
from resnest_jax.models.resnest import EXPANSION, Bottleneck, ResNeSt, Stem

CONVENTIONS = ("fvcore", "authors")
# Batch norms of a block without a ReLU, and the one whose ReLU the authors' figures leave out.
_NO_RELU = ("bn3", "downsample_bn", "bn0")


def count_parameters(model: ResNeSt, channels: int = 3) -> int:
    """Trainable parameters, for images of so many channels."""
    images = jax.ShapeDtypeStruct((1, 64, 64, channels), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))


def count_macs(model: ResNeSt, size: int, channels: int = 3, convention: str = "fvcore") -> int:
    """Multiply-adds for one image of ``size`` x ``size`` pixels, as published tables count them.

    Both conventions count convolutions and dense layers, and neither the sum over the splits nor
    their weighting. Besides these:

    ``fvcore`` counts two for every value normalised. timm's tables are counted so.

    ``authors`` counts one for every bias and every ReLU, and the window of a pool for every value
    that it gives, as the tool that the authors name does (github.com/zhanghang1989/ResNeSt issue
    114: CalculateFlopsTool of Ldpe2G/DeepLearningForFun); their average pool of 1x1 in the first
    shortcut is among these. The ReLU behind the 3x3 of a split attention is left out: the tool as
    published counts it, but without it six of the seven figures of the authors' ablation come out
    to the printed digit, with it five. The seventh, 4s2x40d, no convention gives together with
    the others (``tests/test_costs.py``): 4.38 is counted here where 4.41 is printed.

    Raises:
      InputError: for another convention.
    """
    if convention not in CONVENTIONS:
        raise InputError(f"convention must be one of {CONVENTIONS}; got {convention!r}")
    extras = _fvcore_extras if convention == "fvcore" else _authors_extras
    macs = 0

    def count(next_call: Callable, args: tuple, kwargs: dict, context: InterceptorContext) -> Any:
        nonlocal macs
        out = next_call(*args, **kwargs)
        if context.method_name == "__call__":
            macs += _products(context.module, args[0], out) + extras(context.module, args[0], out)
        return out

    with nn.intercept_methods(count):
        images = jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32)
        jax.eval_shape(model.init, jax.random.key(0), images)
    return macs


def _products(module: nn.Module, x: jax.Array, out: jax.Array) -> int:
    """Multiply-adds of a convolution or dense layer."""
    if isinstance(module, Conv):
        return out.size * (x.shape[-1] // module.groups) * module.kernel_size**2
    return out.size * x.shape[-1] if isinstance(module, nn.Dense) else 0


def _fvcore_extras(module: nn.Module, x: jax.Array, out: jax.Array) -> int:
    return 2 * out.size if isinstance(module, BatchNorm) else 0


def _authors_extras(module: nn.Module, x: jax.Array, out: jax.Array) -> int:
    if isinstance(module, (Conv, nn.Dense)):
        return out.size if module.use_bias else 0
    if isinstance(module, BatchNorm):
        return 0 if module.name in _NO_RELU and module.path[0] != "stem" else out.size
    if isinstance(module, Stem):
        return 9 * module.width * math.prod(-(-side // 2) for side in out.shape[1:3])  # max-pool
    if isinstance(module, Bottleneck):
        pixels = math.prod(out.shape[1:3])
        relu = out.size
        avd = 9 * pixels * module.width if module.avd else 0
        pools_shortcut = module.downsample and module.avg_down
        return relu + avd + (module.strides**2 * pixels * x.shape[-1] if pools_shortcut else 0)
    if isinstance(module, ResNeSt):
        # The global pool, one for every value of the last stage.
        side = -(-x.shape[1] // module.output_stride)
        return side * side * EXPANSION * module.planes[-1]
    return 0
