"""PyTorch's programs of a detector and of its parts."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from experiments.benchmark.detection_parts import WHOLE, names_of_stages
from experiments.benchmark.pytorch import FORMATS, NAMES, load, program
from experiments.benchmark.report import EAGER
from experiments.benchmark.torch_boxes import Tensors
from experiments.benchmark.torch_detector import RCNN
from experiments.benchmark.torch_masks import POOLED, foreground, mask_targets, paste
from resnest_jax.errors import InputError

TOLERANCE = 1e-3  # of the losses, the scores and the masks
PIXELS = 0.1
AGREEING = 0.9  # share of the detections; where scores or overlaps are close, rounding decides


class Inputs(NamedTuple):
    """Images (B, 3, H, W), and of each one its size, the boxes and classes of its objects, and
    their masks, bool (G, H, W), which are None without a mask head.
    """

    x: torch.Tensor
    sizes: list[tuple[int, int]]
    objects: list[tuple[torch.Tensor, torch.Tensor]]
    masks: Tensors | None


def programs(
    name: str,
    train: bool,
    parts: bool,
    state: dict[str, np.ndarray],
    fields: dict[str, Any],
    anchors: list[np.ndarray],
    inputs: tuple,
    photo: tuple[int, int],
    expected: dict[str, Any],
    device: str,
) -> dict:
    """Return name -> program: eager, in both layouts; none if timm lacks the architecture.

    Args:
      state: weights, by the authors' names, those of the backbone by timm's.
      fields: of our model.
      anchors: of each level.
      inputs: the arguments of our ``RCNN.losses``.
      photo: height and width of the photos before resizing, which masks are pasted into.
      expected: our detections, or in training our losses.

    Raises:
      InputError: if the results differ from the expected ones.
    """
    if name not in NAMES:
        return {}
    made = {}
    every = [torch.from_numpy(x).to(device) for x in anchors]
    for layout, memory_format in FORMATS.items():
        model = RCNN(name, fields, every)
        load(model, state)
        model = model.to(device, memory_format=memory_format).train(train)
        batch = _inputs(inputs, device, memory_format)
        if train:
            _check_losses(model.losses(*batch, _first), expected)
            load(model, state)  # the statistics have moved
        else:
            _check_detections(_inference(model, batch)(), expected)
        way = f"PyTorch {EAGER}, {layout}"
        if parts:
            functions = _parts(model, batch, photo)
            made |= {(part, way): program(call, EAGER) for part, call in functions.items()}
        else:
            make = _train_step if train else _inference
            made[way] = program(make(model, batch), EAGER)
    return made


def _inputs(inputs: tuple, device: str, memory_format: torch.memory_format) -> Inputs:
    *arrays, _, _, masks = inputs
    images, sizes, boxes, classes, valid = (
        torch.from_numpy(np.array(x)).to(device) for x in arrays
    )
    objects = zip(boxes, classes, valid, strict=True)
    if masks is not None:
        pixels = torch.from_numpy(np.unpackbits(masks, axis=-1).astype(bool)).to(device)
        masks = [of_image[which] for of_image, which in zip(pixels, valid, strict=True)]
    return Inputs(
        images.permute(0, 3, 1, 2).contiguous(memory_format=memory_format),
        [tuple(size) for size in sizes.tolist()],
        [(boxes[which], classes[which].long()) for boxes, classes, which in objects],
        masks,
    )


def _inference(model: RCNN, batch: Inputs) -> Callable:
    return torch.no_grad()(lambda: model.detect(batch.x, batch.sizes))


def _train_step(model: RCNN, batch: Inputs) -> Callable:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, 1e-3, momentum=0.9, nesterov=True)

    def step() -> None:
        sum(model.losses(*batch, _random).values()).backward()
        optimizer.step()
        optimizer.zero_grad()  # at the end: gradients are temporary

    return step


def _parts(model: RCNN, batch: Inputs, photo: tuple[int, int]) -> dict[str, Callable]:
    """Return part -> function: forward, in training with the gradients that it needs."""
    train, made = model.training, {}

    def add(name: str, call: Callable, *arrays, maps=None, gradient=train) -> Any:
        made[name] = _part(model, call, arrays, maps, gradient)
        result = made[name]()
        return _detached(result) if gradient else result

    backbone = model.backbone
    endpoints = add("backbone", backbone.endpoints, batch.x)
    pyramid = add("FPN", backbone.pyramid, maps=endpoints)
    output = add("RPN", model.rpn, maps=pyramid)
    boxes = add("proposals, NMS", model.select_proposals, *output, batch.sizes, gradient=False)
    if train:
        add("RPN losses", lambda maps: model.rpn_losses(*maps, batch.objects, _random), maps=output)
        _add_training(add, model, batch, pyramid, boxes)
    else:
        _add_inference(add, model, batch.sizes, pyramid, boxes, photo)
        made[WHOLE] = _inference(model, batch)
    return made


def _part(
    model: RCNN, call: Callable, arrays: tuple, maps: Any, gradient: bool
) -> Callable[[], Any]:
    """Make the function of a part, with ``gradient`` also those of the parameters and the maps."""
    leaves = _tensors(maps)
    for tensor in leaves:
        tensor.requires_grad_(gradient)
    inputs = arrays if maps is None else (maps, *arrays)

    def function() -> Any:
        with torch.set_grad_enabled(gradient):
            y = call(*inputs)
        if gradient:
            outputs = [tensor for tensor in _tensors(y) if tensor.requires_grad]
            torch.autograd.backward(outputs, [tensor.detach() for tensor in outputs])
            for tensor in (*model.parameters(), *leaves):
                tensor.grad = None
        return y

    return function


def _add_inference(
    add: Callable,
    model: RCNN,
    sizes: list[tuple[int, int]],
    pyramid: Tensors,
    boxes: Tensors,
    photo: tuple[int, int],
) -> None:
    """Add the parts after the proposals."""
    outputs = []
    for stage, name in enumerate(names_of_stages(model.thresholds[1:])):
        if stage:
            boxes = model.refine(boxes, outputs[-1][1], stage, sizes)
        pooled = add(f"RoIAlign{name}", model.pool, boxes, maps=pyramid)
        outputs.append(add(f"heads{name}", model.heads, stage, maps=pooled))
    found = add("detections, NMS", model.select_detections, boxes, outputs, sizes)
    if model.fields["mask_convolutions"]:
        boxes, _, classes = zip(*found, strict=True)
        pooled = add("RoIAlign of masks", model.pool, boxes, POOLED, maps=pyramid)
        masks = add("mask head", model.masks, classes, maps=pooled)
        add("pasting masks", paste, boxes, masks, sizes, photo)


def _add_training(
    add: Callable, model: RCNN, batch: Inputs, pyramid: Tensors, proposals: Tensors
) -> None:
    """Add the parts after the proposals."""
    names = names_of_stages(model.thresholds[1:])
    arguments = (proposals, batch.objects, _random)
    first = add(f"regions{names[0]}", model.sample_regions, *arguments, gradient=False)
    regions, deltas = first, None
    for stage, name in enumerate(names):
        if stage:
            arguments = (regions, deltas, stage, batch.objects, batch.sizes)
            regions = add(f"regions{name}", model.match_regions, *arguments, gradient=False)
        boxes = [part.boxes for part in regions]
        pooled = add(f"RoIAlign{name}", model.pool, boxes, maps=pyramid)
        _, deltas = add(f"heads{name}", model.heads, stage, maps=pooled)
    if batch.masks is not None:
        positive = foreground(first, model.fields["num_classes"])
        add("mask targets", mask_targets, batch.masks, positive, gradient=False)
        boxes = [part.boxes for part in positive]
        pooled = add("RoIAlign of masks", model.pool, boxes, POOLED, maps=pyramid)
        add("mask head", model.mask_logits, [part.classes for part in positive], maps=pooled)


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
    if losses.keys() != expected.keys():
        raise InputError(f"PyTorch's losses are {list(losses)}, ours {list(expected)}")
    for name, loss in losses.items():
        if not abs(loss.item() - expected[name]) <= TOLERANCE * expected[name]:
            raise InputError(f"PyTorch's {name} is {loss.item()}, ours {expected[name]}")


def _check_detections(found: list[tuple[torch.Tensor, ...]], expected: dict) -> None:
    """Raise InputError if PyTorch's detections are not ours."""
    for i, of_image in enumerate(found):
        valid = expected["valid"][i]
        names = ("boxes", "scores", "classes", "masks")
        ours = [expected[name][i][valid] for name in names if name in expected]
        theirs = [tensor.cpu().numpy() for tensor in of_image]
        most = max(len(theirs[0]), len(ours[0]))
        if (agreeing := _agreeing(theirs, ours)) < AGREEING * most:
            raise InputError(f"PyTorch and we share {agreeing} of {most} detections of image {i}")


def _agreeing(theirs: list[np.ndarray], ours: list[np.ndarray]) -> int:
    """Return how many of PyTorch's detections are ours, in any order."""
    if not (len(theirs[0]) and len(ours[0])):
        return 0
    differences = np.abs(theirs[0][:, None] - ours[0]).max(-1)
    differences[theirs[2][:, None] != ours[2]] = np.inf
    nearest = differences.argmin(1)
    same = differences.min(1) <= PIXELS
    for part, own in ((theirs[k], ours[k]) for k in (1, 3) if k < len(ours)):
        same &= np.abs(part - own[nearest]).reshape(len(part), -1).max(1) <= TOLERANCE
    return np.count_nonzero(same)
