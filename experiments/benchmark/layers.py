"""Time the convolutions of a model in each of our implementations, and in PyTorch."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmark import agreement, report, torch_process
from experiments.benchmark.ours import Program, compile_program
from experiments.timing import time_calls
from resnest_jax.models.backbone import backbone_of
from resnest_jax.models.layers.convolution import IMPLEMENTATIONS, Conv, conv2d
from resnest_jax.models.layers.winograd import exists

# Implementations of the forward pass, the input gradient and the kernel gradient.
MIXED = ("padded,padded,winograd", "padded,winograd,winograd")

RESULT = "result"  # in place of a layout: the program that returns a sample of the results
EVERY = 97  # value of the results is in the sample: a prime, so all channels and pixels take part

Sample = list[np.ndarray]


class Layer(NamedTuple):
    """The shapes (B, H, W, C) and (k, k, C / groups, features) of a convolution, and its fields."""

    input: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: int
    dilation: int
    groups: int


def layers(model: nn.Module, *inputs: Any, method: str | None = None) -> dict[Layer, str]:
    """Return the different layers that a call of the model's method has, and their first names.

    1x1 layers are left out in the backbone, and where they see one pixel of each image.
    """
    found = {}

    def record(next_call, args, kwargs, context):
        conv = context.module
        if isinstance(conv, Conv) and context.method_name == "__call__":
            x = args[0].shape
            pointwise = conv.kernel_size == 1
            of_backbone = "backbone" in conv.path or model is backbone_of(model)
            if not (pointwise and (of_backbone or x[1:3] == (1, 1))):
                kernel = (conv.kernel_size,) * 2 + (x[-1] // conv.groups, conv.features)
                layer = Layer(x, kernel, conv.strides, conv.dilation, conv.groups)
                found.setdefault(layer, "/".join(conv.path))
        return next_call(*args, **kwargs)

    with nn.intercept_methods(record):
        jax.eval_shape(partial(model.init, method=method), jax.random.key(0), *inputs)
    return found


def rows(found: dict[Layer, str], dtype: str, repeats: int, train: bool, torch: bool) -> list[dict]:
    """Return median milliseconds per layer: forward, with ``train`` forward and both gradients.

    With ``torch`` those of eager PyTorch's faster layout too, whose results are compared with ours.

    Raises:
      InputError: if they differ.
    """
    theirs = {}
    if torch:
        settings = {"layers": list(found), "dtype": dtype, "train": train}
        theirs = torch_process.programs("programs", "torch_layers", **settings)
    table = []
    for i, (layer, name) in enumerate(found.items()):
        print(f"layer {i + 1} of {len(found)}, {name}", flush=True)
        times = _times(layer, _of(i, theirs), dtype, repeats, train)
        table.append({"": name, **layer._asdict(), **times})
    return table


def slower(table: list[dict]) -> list[str]:
    """Return a line for each layer that PyTorch does in less time, the slowest one first."""
    short = [row for row in table if row.get(report.RATIO, 1) < 1]
    return [
        f"{row[report.RATIO]} of PyTorch's speed: {row['']}, "
        + ", ".join(f"{key} {row[key]}" for key in Layer._fields)
        for row in sorted(short, key=lambda row: row[report.RATIO])
    ]


def arrays(layer: Layer) -> tuple[np.ndarray, np.ndarray]:
    """Return the input and the kernel, float32: the same ones in every process."""
    rng = np.random.default_rng(0)
    x, kernel = (rng.standard_normal(shape, np.float32) for shape in (layer.input, layer.kernel))
    return x, kernel


def sample(results: tuple[np.ndarray, ...]) -> Sample:
    """Return some values of each result."""
    return [np.asarray(array, np.float32).ravel()[::EVERY] for array in results]


def _of(index: int, theirs: dict[tuple[int, str], Program]) -> dict[str, Callable]:
    """Return layout -> call of a layer."""
    return {name: program.call for (i, name), program in theirs.items() if i == index}


def _times(
    layer: Layer, theirs: dict[str, Callable], dtype: str, repeats: int, train: bool
) -> dict[str, Any]:
    """Return the columns with the times of a layer."""
    calls = _ours(layer, dtype, train)
    if theirs:
        expected = sample(calls["auto"]())
        for found in theirs.pop(RESULT)():
            _check(layer, found, expected, dtype)
    seconds = time_calls(calls | theirs, repeats)
    eager = [seconds[layout] for layout in theirs]
    columns = {f"{name} ms": report.milliseconds(seconds[name]) for name in calls}
    return {"auto ms": columns["auto ms"], **report.beside_eager(eager, seconds["auto"])} | columns


def _ours(layer: Layer, dtype: str, train: bool) -> dict[str, Callable]:
    """Compile a layer in each implementation; a 1x1 has one."""
    inputs = [jnp.asarray(array, dtype) for array in arrays(layer)]
    names = ["auto", *IMPLEMENTATIONS, *MIXED * train]
    if not exists(layer.kernel, layer.stride):
        names = [name for name in names if "winograd" not in name]
    return {
        name: compile_program(_function(layer, name, train), *inputs).call
        for name in (names if layer.kernel[0] > 1 else ["auto"])
    }


def _function(layer: Layer, implementation: str, train: bool) -> Callable:
    """Make a function that returns the output, in training also the gradients of both arrays."""

    def forward(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return conv2d(x, kernel, layer.stride, layer.dilation, layer.groups, implementation)

    def both(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, ...]:
        y, pullback = jax.vjp(forward, x, kernel)
        return y, *pullback(y)

    return both if train else lambda *inputs: (forward(*inputs),)


def _check(layer: Layer, found: Sample, expected: Sample, dtype: str) -> None:
    """Raise InputError if PyTorch's results are not ours."""
    kinds = ("output", "input gradient", "kernel gradient")
    for kind, theirs, ours in zip(kinds, found, expected, strict=False):
        agreement.check(f"PyTorch's {kind} of {layer}", theirs, ours, dtype)
