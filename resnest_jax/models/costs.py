"""Count parameters and multiply-adds of a model."""

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
# Batch norms of a block without a ReLU, and the one whose ReLU the authors' figures do not count.
_NO_RELU = ("bn3", "downsample_bn", "bn0")


def count_parameters(model: ResNeSt, channels: int = 3) -> int:
    """Count the trainable parameters, for images with ``channels`` channels."""
    images = jax.ShapeDtypeStruct((1, 64, 64, channels), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))


def count_macs(model: ResNeSt, size: int, channels: int = 3, convention: str = "fvcore") -> int:
    """Count multiply-adds for one image of ``size`` x ``size`` pixels, as published tables do.

    Both conventions count convolutions and dense layers, but not the sum over the splits or their
    weighting. In addition:

    ``fvcore`` counts two per normalised value, as in timm's tables.

    ``authors`` counts one per bias and per ReLU, and for each output value of a pool the size of
    its window, like the tool that the authors name (github.com/zhanghang1989/ResNeSt issue 114:
    CalculateFlopsTool of Ldpe2G/DeepLearningForFun). This includes their average pool of 1x1 in
    the first shortcut. The ReLU after the 3x3 of a split attention is not counted: the published
    tool counts it, but without it six of the seven figures of the authors' ablation agree to the
    printed digit; with it, five. No convention gives the seventh, 4s2x40d, together with the
    others (``tests/test_costs.py``): 4.38 is counted here, 4.41 is printed.

    Raises:
      InputError: if the convention is unknown.
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
    """Return the multiply-adds of a convolution or dense layer; 0 for other modules."""
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
        # The global pool: one per value of the last stage.
        side = -(-x.shape[1] // module.output_stride)
        return side * side * EXPANSION * module.planes[-1]
    return 0
