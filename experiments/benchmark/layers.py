"""Time each convolution of a model that is not 1x1, in each implementation."""

import flax.linen as nn
import jax

from experiments.benchmark.ours import compile_program
from experiments.timing import time_calls
from resnest_jax.models.backbone import backbone_of
from resnest_jax.models.layers.convolution import IMPLEMENTATIONS, Conv, conv2d
from resnest_jax.models.layers.winograd import exists

# Implementations of the forward pass, the input gradient and the kernel gradient.
MIXED = ("split,split,winograd", "split,winograd,winograd")


def shapes(model, images: jax.Array) -> list[tuple]:
    """Return each distinct (input shape, kernel shape, strides, dilation, groups)."""
    found = {}

    def record(next_call, args, kwargs, context):
        conv = context.module
        if isinstance(conv, Conv) and context.method_name == "__call__" and conv.kernel_size > 1:
            x = args[0].shape
            kernel = (conv.kernel_size,) * 2 + (x[-1] // conv.groups, conv.features)
            found[x, kernel, conv.strides, conv.dilation, conv.groups] = None
        return next_call(*args, **kwargs)

    with nn.intercept_methods(record):
        jax.eval_shape(model.init, jax.random.key(0), images)
    return list(found)


def rows(model, images: jax.Array, repeats: int, train: bool) -> list[dict]:
    """Return median milliseconds per layer: forward, with ``train`` forward and gradients."""
    dtype = backbone_of(model).dtype
    table = []
    for x_shape, kernel_shape, *settings in shapes(model, images):
        x = jax.random.normal(jax.random.key(0), x_shape, dtype)
        kernel = jax.random.normal(jax.random.key(1), kernel_shape, dtype)
        calls = {}
        for implementation in ("auto", *IMPLEMENTATIONS, *MIXED * train):
            if "winograd" in implementation and not exists(kernel_shape, settings[0]):
                continue

            def forward(x, kernel, settings=settings, implementation=implementation):
                return conv2d(x, kernel, *settings, implementation)

            def both(x, kernel, forward=forward):
                y, gradient = jax.vjp(forward, x, kernel)
                return y, gradient(y)

            calls[implementation] = compile_program(both if train else forward, x, kernel).call
        seconds = time_calls(calls, repeats)
        row = {"input": x_shape, "kernel": kernel_shape, "stride": settings[0]}
        row |= {"dilation": settings[1], "groups": settings[2]}
        median = {name: sorted(times)[len(times) // 2] for name, times in seconds.items()}
        table.append(row | {f"{name} ms": round(1e3 * s, 2) for name, s in median.items()})
    return table
