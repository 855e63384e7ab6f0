"""Boxes in PyTorch: their coding, levels and samples, as in detectron2."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torchvision.ops import box_iou

STRIDES = (4, 8, 16, 32, 64)
ANCHOR_WEIGHTS, BOX_WEIGHTS = (1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)
MAX_LOG_SCALE = math.log(1000 / 16)

Tensors = list[torch.Tensor]
# From the indices of the boxes and a number to at most this many of them.
Draw = Callable[[torch.Tensor, int], torch.Tensor]


class Regions(NamedTuple):
    """Regions of an image (R, ...), see ``models.detection.targets.Regions``."""

    boxes: torch.Tensor
    classes: torch.Tensor
    objects: torch.Tensor
    targets: torch.Tensor


def encode(boxes: torch.Tensor, targets: torch.Tensor, weights: tuple) -> torch.Tensor:
    """Return the deltas (..., 4) from boxes to targets."""
    (x, y, width, height), (u, v, w, h) = _centres_and_sides(boxes), _centres_and_sides(targets)
    deltas = ((u - x) / width, (v - y) / height, (w / width).log(), (h / height).log())
    return torch.stack([k * delta for k, delta in zip(weights, deltas, strict=True)], -1)


def decode(boxes: torch.Tensor, deltas: torch.Tensor, weights: tuple) -> torch.Tensor:
    """Apply deltas (..., 4) to boxes (..., 4)."""
    x, y, width, height = _centres_and_sides(boxes)
    dx, dy, dw, dh = (delta / k for k, delta in zip(weights, deltas.unbind(-1), strict=True))
    x, y = x + dx * width, y + dy * height
    w = 0.5 * width * dw.clamp(max=MAX_LOG_SCALE).exp()
    h = 0.5 * height * dh.clamp(max=MAX_LOG_SCALE).exp()
    return torch.stack((x - w, y - h, x + w, y + h), -1)


def box_weights(stage: int) -> tuple[float, ...]:
    """Return the weights of the coder in a stage of a cascade."""
    return tuple((1 + stage) * weight for weight in BOX_WEIGHTS)


def areas(boxes: torch.Tensor) -> torch.Tensor:
    """Return the areas of boxes (N, 4)."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def nonempty(boxes: torch.Tensor) -> torch.Tensor:
    """Return which boxes (N, 4) have positive sides."""
    return (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])


def with_index(boxes: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the boxes of all images with the index of theirs, (N, 5), as RoIAlign takes them."""
    index = [torch.full_like(part[:, :1], i) for i, part in enumerate(boxes)]
    return torch.cat((torch.cat(index), torch.cat(boxes)), 1)


def label(boxes: torch.Tensor, objects: tuple, threshold: float, num_classes: int) -> Regions:
    """Return regions with the objects, boxes and classes, that they overlap most."""
    truth, classes = objects
    best, index = box_iou(truth, boxes).max(0)
    classes = torch.where(best >= threshold, classes[index], num_classes)
    return Regions(boxes, classes, index, truth[index])


def sample(
    positive: torch.Tensor, negative: torch.Tensor, num: int, fraction: float, draw: Draw
) -> Tensors:
    """Return the indices of positive and of negative boxes."""
    chosen = draw(positive.nonzero()[:, 0], int(num * fraction))
    return [chosen, draw(negative.nonzero()[:, 0], num - len(chosen))]


def _centres_and_sides(boxes: torch.Tensor) -> Tensors:
    width, height = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]
    return [boxes[..., 0] + 0.5 * width, boxes[..., 1] + 0.5 * height, width, height]
