"""Faster R-CNN in PyTorch, with the authors' names, on timm's ResNeSt and torchvision's operations.

It does what detectron2 does, with the same numbers of candidates, proposals and samples as ours.
"""

import math
from collections.abc import Callable
from typing import Any

import timm
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, interpolate
from torchvision.ops import batched_nms, box_iou, clip_boxes_to_image, roi_align

from experiments.benchmark.pytorch import NAMES

STRIDES = (4, 8, 16, 32, 64)
ANCHOR_WEIGHTS, BOX_WEIGHTS = (1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)
MAX_LOG_SCALE = math.log(1000 / 16)

Tensors = list[torch.Tensor]
# From the indices of the boxes and a number to at most this many of them.
Draw = Callable[[torch.Tensor, int], torch.Tensor]


class Conv(nn.Conv2d):
    """A convolution of the size of its input, and a batch norm."""

    def __init__(self, channels: int, features: int, kernel_size: int):
        super().__init__(channels, features, kernel_size, padding=kernel_size // 2, bias=False)
        self.norm = nn.BatchNorm2d(features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(super().forward(x))


class Backbone(nn.Module):
    """timm's network, whose stem and first stage are frozen, and a feature pyramid on it."""

    def __init__(self, name: str, features: int):
        super().__init__()
        self.bottom_up = timm.create_model(NAMES[name], num_classes=0)
        for level, info in zip(range(2, 6), self.bottom_up.feature_info[1:], strict=True):
            self.add_module(f"fpn_lateral{level}", Conv(info["num_chs"], features, 1))
            self.add_module(f"fpn_output{level}", Conv(features, features, 3))
        for part in self._frozen():
            part.requires_grad_(False)

    def train(self, mode: bool = True) -> nn.Module:
        super().train(mode)
        for part in self._frozen():
            part.eval()
        return self

    def _frozen(self) -> list[nn.Module]:
        return [self.bottom_up.conv1, self.bottom_up.bn1, self.bottom_up.layer1]

    def endpoints(self, x: torch.Tensor) -> Tensors:
        net = self.bottom_up
        found = [net.layer1(net.maxpool(net.act1(net.bn1(net.conv1(x)))))]
        for layer in (net.layer2, net.layer3, net.layer4):
            found.append(layer(found[-1]))
        return found

    def pyramid(self, endpoints: Tensors) -> Tensors:
        found, above = [], None
        for level in range(5, 1, -1):
            x = self.get_submodule(f"fpn_lateral{level}")(endpoints[level - 2])
            above = x if above is None else x + interpolate(above, scale_factor=2)
            found.insert(0, self.get_submodule(f"fpn_output{level}")(above))
        return [*found, found[-1][:, :, ::2, ::2]]


class FasterRCNN(nn.Module):
    """Faster R-CNN on a ResNeSt of timm.

    Args:
      name: of the backbone.
      fields: those of our model.
      anchors: of each level, (A, 4).
    """

    def __init__(self, name: str, fields: dict[str, Any], anchors: Tensors):
        super().__init__()
        features, num_anchors = fields["features"], len(fields["anchor_ratios"])
        self.fields, self.anchors = fields, anchors
        self.backbone = Backbone(name, features)
        head = {"conv": nn.Conv2d(features, features, 3, padding=1)}
        head["objectness_logits"] = nn.Conv2d(features, num_anchors, 1)
        head["anchor_deltas"] = nn.Conv2d(features, 4 * num_anchors, 1)
        self.proposal_generator = nn.ModuleDict({"rpn_head": nn.ModuleDict(head)})
        head = {f"conv{i}": Conv(features, features, 3) for i in range(1, 5)}
        head["fc1"] = nn.Linear(49 * features, fields["hidden"])
        predictor = {"cls_score": nn.Linear(fields["hidden"], fields["num_classes"] + 1)}
        predictor["bbox_pred"] = nn.Linear(fields["hidden"], 4 * fields["num_classes"])
        heads = {"box_head": nn.ModuleDict(head), "box_predictor": nn.ModuleDict(predictor)}
        self.roi_heads = nn.ModuleDict(heads)

    def detect(self, x: torch.Tensor, sizes: list) -> list[tuple[torch.Tensor, ...]]:
        """Return the boxes, scores and classes of each image."""
        pyramid = self.backbone.pyramid(self.backbone.endpoints(x))
        proposals = self.select_proposals(*self.rpn(pyramid), sizes)
        outputs = self.heads(self.pool(pyramid, proposals))
        return self.select_detections(proposals, *outputs, sizes)

    def losses(self, x: torch.Tensor, sizes: list, objects: list, draw: Draw) -> dict:
        """Return the losses, scalars by our names."""
        pyramid = self.backbone.pyramid(self.backbone.endpoints(x))
        logits, deltas = self.rpn(pyramid)
        proposals = self.select_proposals(logits, deltas, sizes)
        regions = self.sample_regions(proposals, objects, draw)
        outputs = self.heads(self.pool(pyramid, [boxes for boxes, *_ in regions]))
        rpn_class, rpn_box = self.rpn_losses(logits, deltas, objects, draw)
        box_class, box_box = self.box_losses(*outputs, regions)
        return {
            "loss_rpn_cls": rpn_class,
            "loss_rpn_loc": rpn_box,
            "loss_cls": box_class,
            "loss_box_reg": box_box,
        }

    def rpn(self, pyramid: Tensors) -> tuple[Tensors, Tensors]:
        """Return the logits (B, A) and deltas (B, A, 4) of each level."""
        head = self.proposal_generator["rpn_head"]
        logits, deltas = [], []
        for x in pyramid:
            x = head["conv"](x).relu()
            logits.append(head["objectness_logits"](x).permute(0, 2, 3, 1).flatten(1))
            of_level = head["anchor_deltas"](x).permute(0, 2, 3, 1)
            deltas.append(of_level.reshape(len(x), -1, 4))
        return logits, deltas

    @torch.no_grad()
    def select_proposals(self, logits: Tensors, deltas: Tensors, sizes: list) -> Tensors:
        """Return the proposals of each image."""
        kind = "train" if self.training else "test"
        most, num = self.fields[f"{kind}_candidates"], self.fields[f"{kind}_proposals"]
        boxes, scores, levels = [], [], []
        for level, of_level in enumerate(zip(logits, deltas, self.anchors, strict=True)):
            logit, delta, anchors = of_level
            score, index = logit.topk(min(most, logit.shape[1]))
            delta = delta.gather(1, index[..., None].expand(-1, -1, 4))
            boxes.append(decode(anchors[index], delta, ANCHOR_WEIGHTS))
            scores.append(score)
            levels.append(torch.full_like(index[0], level))
        levels, found = torch.cat(levels), []
        for box, score, size in zip(torch.cat(boxes, 1), torch.cat(scores, 1), sizes, strict=True):
            finite = score.isfinite() & box.isfinite().all(1)
            box = clip_boxes_to_image(box, size)
            chosen = finite & (box[:, 2] > box[:, 0]) & (box[:, 3] > box[:, 1])
            box, score = box[chosen], score[chosen]
            kept = batched_nms(box, score, levels[chosen], self.fields["proposal_nms"])
            found.append(box[kept[:num]])
        return found

    def pool(self, pyramid: Tensors, boxes: Tensors) -> torch.Tensor:
        """Return the regions (R, C, 7, 7) of all images."""
        every = torch.cat(boxes)
        image = torch.cat([torch.full_like(part[:, :1], i) for i, part in enumerate(boxes)])
        regions = torch.cat((image, every), 1)
        side = _areas(every).sqrt()
        level = sum((side >= border).long() for border in (112, 224, 448))
        pooled = pyramid[0].new_zeros(len(every), pyramid[0].shape[1], 7, 7)
        for i, (x, stride) in enumerate(zip(pyramid[:4], STRIDES[:4], strict=True)):
            index = (level == i).nonzero()[:, 0]
            part = roi_align(x, regions[index], 7, 1 / stride, sampling_ratio=-1, aligned=True)
            pooled.index_put_((index,), part)
        return pooled

    def heads(self, pooled: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the logits (R, K + 1) and deltas (R, K, 4) of regions."""
        head, predictor = self.roi_heads["box_head"], self.roi_heads["box_predictor"]
        for i in range(1, 5):
            pooled = head[f"conv{i}"](pooled).relu()
        x = head["fc1"](pooled.flatten(1)).relu()
        return predictor["cls_score"](x), predictor["bbox_pred"](x).unflatten(1, (-1, 4))

    def select_detections(
        self, proposals: Tensors, logits: torch.Tensor, deltas: torch.Tensor, sizes: list
    ) -> list[tuple[torch.Tensor, ...]]:
        """Return the boxes, scores and classes of each image."""
        counts = [len(part) for part in proposals]
        boxes = decode(torch.cat(proposals)[:, None], deltas, BOX_WEIGHTS).split(counts)
        scores = logits.softmax(1).split(counts)
        return [self._detections(*part) for part in zip(boxes, scores, sizes, strict=True)]

    def _detections(
        self, boxes: torch.Tensor, scores: torch.Tensor, size: tuple[int, int]
    ) -> tuple[torch.Tensor, ...]:
        finite = boxes.isfinite().all(2).all(1) & scores.isfinite().all(1)
        boxes, scores = clip_boxes_to_image(boxes[finite], size), scores[finite, :-1]
        row, kind = (scores > self.fields["score_threshold"]).nonzero(as_tuple=True)
        boxes, scores = boxes[row, kind], scores[row, kind]
        kept = batched_nms(boxes, scores, kind, self.fields["detection_nms"])
        kept = kept[: self.fields["detections"]]
        return boxes[kept], scores[kept], kind[kept]

    def rpn_losses(self, logits: Tensors, deltas: Tensors, objects: list, draw: Draw) -> Tensors:
        """Return the losses of objectness and of boxes."""
        f, anchors = self.fields, torch.cat(self.anchors)
        low, high = f["rpn_thresholds"]
        logits, deltas = torch.cat(logits, 1), torch.cat(deltas, 1)
        objectness, of_boxes = logits.new_zeros(()), logits.new_zeros(())
        for logit, delta, (boxes, _) in zip(logits, deltas, objects, strict=True):
            overlaps = box_iou(boxes, anchors)
            best, index = overlaps.max(0)
            positive = (best >= high) | (overlaps == overlaps.max(1, keepdim=True).values).any(0)
            chosen = _sample(positive, ~positive & (best < low), f, "rpn", draw)
            both, target = (
                torch.cat(chosen),
                torch.zeros(sum(map(len, chosen)), device=logit.device),
            )
            target[: len(chosen[0])] = 1
            entropy = binary_cross_entropy_with_logits(logit[both], target, reduction="sum")
            objectness = objectness + entropy
            wanted = encode(anchors[chosen[0]], boxes[index[chosen[0]]], ANCHOR_WEIGHTS)
            of_boxes = of_boxes + (delta[chosen[0]] - wanted).abs().sum()
        count = f["rpn_samples"] * len(objects)
        return [objectness / count, of_boxes / count]

    @torch.no_grad()
    def sample_regions(self, proposals: Tensors, objects: list, draw: Draw) -> list:
        """Return the boxes, classes and targets of the regions of each image."""
        found = []
        for boxes, (truth, classes) in zip(proposals, objects, strict=True):
            boxes = torch.cat((boxes, truth))
            best, index = box_iou(truth, boxes).max(0)
            positive = best >= self.fields["roi_threshold"]
            classes = torch.where(positive, classes[index], self.fields["num_classes"])
            chosen = torch.cat(_sample(positive, ~positive, self.fields, "roi", draw))
            found.append((boxes[chosen], classes[chosen], truth[index[chosen]]))
        return found

    def box_losses(self, logits: torch.Tensor, deltas: torch.Tensor, regions: list) -> Tensors:
        """Return the losses of classes and of boxes."""
        boxes, classes, targets = (torch.cat(part) for part in zip(*regions, strict=True))
        positive = (classes < self.fields["num_classes"]).nonzero()[:, 0]
        wanted = encode(boxes[positive], targets[positive], BOX_WEIGHTS)
        distance = (deltas[positive, classes[positive]] - wanted).abs().sum()
        return [cross_entropy(logits, classes), distance / len(classes)]


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


def _sample(
    positive: torch.Tensor, negative: torch.Tensor, fields: dict[str, Any], kind: str, draw: Draw
) -> Tensors:
    """Return the indices of positive and of negative boxes."""
    num = fields[f"{kind}_samples"]
    chosen = draw(positive.nonzero()[:, 0], int(num * fields[f"{kind}_positives"]))
    return [chosen, draw(negative.nonzero()[:, 0], num - len(chosen))]


def _areas(boxes: torch.Tensor) -> torch.Tensor:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _centres_and_sides(boxes: torch.Tensor) -> Tensors:
    width, height = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]
    return [boxes[..., 0] + 0.5 * width, boxes[..., 1] + 0.5 * height, width, height]
