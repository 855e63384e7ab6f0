"""PyTorch's programs of Faster R-CNN and of its parts."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from experiments.benchmark.pytorch import FORMATS, NAMES, load, program
from experiments.benchmark.report import EAGER
from experiments.benchmark.torch_detector import FasterRCNN
from resnest_jax.errors import InputError

TOLERANCE = 1e-3  # of the losses and of the scores
PIXELS = 0.1


def programs(
    name: str,
    train: bool,
    parts: bool,
    state: dict[str, np.ndarray],
    fields: dict[str, Any],
    anchors: list[np.ndarray],
    inputs: tuple[np.ndarray, ...],
    expected: dict[str, Any],
    device: str,
) -> dict:
    """Return name -> program: eager, in both layouts; none if timm lacks the architecture.

    Args:
      state: weights, by the authors' names, those of the backbone by timm's.
      fields: of our model.
      anchors: of each level.
      inputs: images (B, H, W, 3), sizes, boxes, classes and ``valid`` of the objects.
      expected: our detections, or in training our losses.

    Raises:
      InputError: if the results differ from the expected ones.
    """
    if name not in NAMES:
        return {}
    made = {}
    images, sizes, *truth = (torch.from_numpy(x).to(device) for x in inputs)
    sizes = [tuple(size) for size in sizes.tolist()]
    truth = zip(*truth, strict=True)
    objects = [(boxes[valid], classes[valid].long()) for boxes, classes, valid in truth]
    every = [torch.from_numpy(x).to(device) for x in anchors]
    for layout, memory_format in FORMATS.items():
        model = FasterRCNN(name, fields, every)
        load(model, state)
        model = model.to(device, memory_format=memory_format)
        x = images.permute(0, 3, 1, 2).contiguous(memory_format=memory_format)
        if train:
            _check_losses(model.train().losses(x, sizes, objects, _first), expected)
            load(model, state)  # the statistics have moved
        else:
            with torch.no_grad():
                _check_detections(model.eval().detect(x, sizes), expected)
        way = f"PyTorch {EAGER}, {layout}"
        if parts:
            functions = _parts(model, x, sizes, objects)
            made |= {(part, way): program(call, EAGER) for part, call in functions.items()}
        else:
            call = _train_step(model, x, sizes, objects) if train else _inference(model, x, sizes)
            made[way] = program(call, EAGER)
    return made


def _inference(model: FasterRCNN, x: torch.Tensor, sizes: list) -> Callable:
    return torch.no_grad()(lambda: model.detect(x, sizes))


def _train_step(model: FasterRCNN, x: torch.Tensor, sizes: list, objects: list) -> Callable:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, 1e-3, momentum=0.9, nesterov=True)

    def step() -> None:
        sum(model.losses(x, sizes, objects, _random).values()).backward()
        optimizer.step()
        optimizer.zero_grad()  # at the end: gradients are temporary

    return step


def _parts(model: FasterRCNN, x: torch.Tensor, sizes: list, objects: list) -> dict[str, Callable]:
    """Return part -> function: forward, in training with the gradients that it needs."""
    train, made = model.training, {}

    def add(name: str, call: Callable, *arrays, maps=None, gradient=train) -> Any:
        if maps is not None:
            leaves = _tensors(maps)
            for tensor in leaves:
                tensor.requires_grad_(gradient)
            arrays = (maps, *arrays)

        def function() -> Any:
            with torch.set_grad_enabled(gradient):
                y = call(*arrays)
            if gradient:
                outputs = [tensor for tensor in _tensors(y) if tensor.requires_grad]
                torch.autograd.backward(outputs, [tensor.detach() for tensor in outputs])
                for tensor in (*model.parameters(), *_tensors(maps)):
                    tensor.grad = None
            return y

        made[name] = function
        return _detached(function())

    backbone = model.backbone
    endpoints = add("backbone", backbone.endpoints, x)
    pyramid = add("FPN", backbone.pyramid, maps=endpoints)
    output = add("RPN", model.rpn, maps=pyramid)
    boxes = add("proposals, NMS", model.select_proposals, *output, sizes, gradient=False)
    if train:
        add("RPN losses", lambda maps: model.rpn_losses(*maps, objects, _random), maps=output)
        arguments = (boxes, objects, _random)
        regions = add("regions", model.sample_regions, *arguments, gradient=False)
        boxes = [part for part, *_ in regions]
    pooled = add("RoIAlign", model.pool, boxes, maps=pyramid)
    outputs = add("heads", model.heads, maps=pooled)
    if not train:
        add("detections, NMS", model.select_detections, boxes, *outputs, sizes)
    return made


def _tensors(tree: Any) -> list[torch.Tensor]:
    """Return the tensors of nested lists and tuples."""
    if isinstance(tree, list | tuple):
        return [tensor for part in tree for tensor in _tensors(part)]
    return [] if tree is None else [tree]


def _detached(tree: Any) -> Any:
    if isinstance(tree, list | tuple):
        return [_detached(part) for part in tree]
    return tree.detach()


def _first(index: torch.Tensor, most: int) -> torch.Tensor:
    return index[:most]


def _random(index: torch.Tensor, most: int) -> torch.Tensor:
    return index[torch.randperm(len(index), device=index.device)[:most]]


def _check_losses(losses: dict[str, torch.Tensor], expected: dict[str, np.ndarray]) -> None:
    """Raise InputError if PyTorch's losses are not ours."""
    for name, loss in losses.items():
        if not abs(loss.item() - expected[name]) <= TOLERANCE * expected[name]:
            raise InputError(f"PyTorch's {name} is {loss.item()}, ours {expected[name]}")


def _check_detections(found: list[tuple[torch.Tensor, ...]], expected: dict) -> None:
    """Raise InputError if PyTorch's detections are not ours."""
    for i, (boxes, scores, classes) in enumerate(found):
        valid = expected["valid"][i]
        ours = {key: value[i][valid] for key, value in expected.items()}
        if len(boxes) != len(ours["boxes"]):
            raise InputError(f"PyTorch finds {len(boxes)} objects, ours {len(ours['boxes'])}")
        ways = [(boxes, "boxes", PIXELS), (scores, "scores", TOLERANCE), (classes, "classes", 0)]
        for tensor, key, tolerance in ways:
            error = np.abs(tensor.cpu().numpy() - ours[key]).max(initial=0)
            if not error <= tolerance:
                raise InputError(f"PyTorch's {key} differ from ours by {error:.1e}")
