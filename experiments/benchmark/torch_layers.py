"""PyTorch's programs of single convolutions."""

from collections.abc import Callable
from functools import lru_cache

import torch
from torch.nn.functional import conv2d

from experiments.benchmark.layers import RESULT, Layer, Sample, arrays, sample
from experiments.benchmark.ours import Program
from experiments.benchmark.pytorch import FORMATS, synchronized

Tensors = tuple[torch.Tensor, ...]


def programs(
    layers: list[Layer], dtype: str, train: bool, device: str
) -> dict[tuple[int, str], Program]:
    """Return (index of a layer, layout) -> program: forward, in training with both gradients.

    In place of a layout there is also ``RESULT``: its call returns a sample of the results of each
    layout. The arrays of a layer are made when it is called first, and kept until another one is.
    """

    @lru_cache(maxsize=1)
    def calls(index: int) -> dict[str, Callable]:
        functions = {
            layout: _function(layers[index], dtype, train, device, memory_format)
            for layout, memory_format in FORMATS.items()
        }
        made = {layout: synchronized(function) for layout, function in functions.items()}
        return made | {RESULT: lambda: [_sample(function()) for function in functions.values()]}

    return {
        (index, name): Program(lambda index=index, name=name: calls(index)[name]())
        for index in range(len(layers))
        for name in (RESULT, *FORMATS)
    }


def _function(
    layer: Layer, dtype: str, train: bool, device: str, memory_format: torch.memory_format
) -> Callable[[], Tensors]:
    x, kernel = (
        torch.from_numpy(array).to(device, getattr(torch, dtype)) for array in arrays(layer)
    )
    x = x.permute(0, 3, 1, 2).contiguous(memory_format=memory_format).requires_grad_(train)
    kernel = (
        kernel.permute(3, 2, 0, 1).contiguous(memory_format=memory_format).requires_grad_(train)
    )
    pad = layer.dilation * (layer.kernel[0] // 2)

    def function() -> Tensors:
        y = conv2d(x, kernel, None, layer.stride, pad, layer.dilation, layer.groups)
        return (y, *torch.autograd.grad(y, (x, kernel), y.detach())) if train else (y,)

    return function


def _sample(results: Tensors) -> Sample:
    """Return a sample of results in our order of axes."""
    y, *gradients = results
    ordered = [y.permute(0, 2, 3, 1)]
    if gradients:
        ordered += [gradients[0].permute(0, 2, 3, 1), gradients[1].permute(2, 3, 1, 0)]
    return sample(tuple(tensor.detach().float().cpu().numpy() for tensor in ordered))
