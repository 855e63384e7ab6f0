"""Two-stage detectors in PyTorch, with the authors' names, on timm's ResNeSt and torchvision's
operations.

They do what detectron2 does, with the same numbers of candidates, proposals and samples as ours.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torchvision.ops import batched_nms, box_iou, clip_boxes_to_image, roi_align

from experiments.benchmark.torch_boxes import (
    ANCHOR_WEIGHTS,
    STRIDES,
    Draw,
    Regions,
    Tensors,
    areas,
    box_weights,
    decode,
    encode,
    label,
    nonempty,
    sample,
    with_index,
)
from experiments.benchmark.torch_masks import (
    POOLED,
    MaskHead,
    foreground,
    mask_loss,
    mask_targets,
)
from experiments.benchmark.torch_pyramid import Backbone, Conv


class RCNN(nn.Module):
    """Faster, Mask, Cascade or Cascade Mask R-CNN on a ResNeSt of timm.

    Args:
      name: of the backbone.
      fields: those of our model.
      anchors: of each level, (A, 4).
    """

    def __init__(self, name: str, fields: dict[str, Any], anchors: Tensors):
        super().__init__()
        features, num_anchors = fields["features"], len(fields["anchor_ratios"])
        self.fields, self.anchors = fields, anchors
        self.thresholds = (fields["roi_threshold"], *fields["cascade_thresholds"])
        self.cascade = len(self.thresholds) > 1
        self.backbone = Backbone(name, features)
        head = {"conv": nn.Conv2d(features, features, 3, padding=1)}
        head["objectness_logits"] = nn.Conv2d(features, num_anchors, 1)
        head["anchor_deltas"] = nn.Conv2d(features, 4 * num_anchors, 1)
        self.proposal_generator = nn.ModuleDict({"rpn_head": nn.ModuleDict(head)})
        heads = [self._box_head() for _ in self.thresholds]
        predictors = [self._box_predictor() for _ in self.thresholds]
        self.roi_heads = nn.ModuleDict(
            {
                "box_head": nn.ModuleList(heads) if self.cascade else heads[0],
                "box_predictor": nn.ModuleList(predictors) if self.cascade else predictors[0],
            }
        )
        if convolutions := fields["mask_convolutions"]:
            mask_head = MaskHead(features, convolutions, fields["num_classes"])
            self.roi_heads["mask_head"] = mask_head

    def _box_head(self) -> nn.Module:
        features = self.fields["features"]
        head = {f"conv{i}": Conv(features, features, 3) for i in range(1, 5)}
        return nn.ModuleDict(head | {"fc1": nn.Linear(49 * features, self.fields["hidden"])})

    def _box_predictor(self) -> nn.Module:
        hidden, num_classes = self.fields["hidden"], self.fields["num_classes"]
        deltas = 4 if self.cascade else 4 * num_classes
        predictor = {"cls_score": nn.Linear(hidden, num_classes + 1)}
        return nn.ModuleDict(predictor | {"bbox_pred": nn.Linear(hidden, deltas)})

    def detect(self, x: torch.Tensor, sizes: list) -> list[tuple[torch.Tensor, ...]]:
        """Return the boxes, scores, classes, and with a mask head masks, of each image."""
        pyramid = self.backbone.pyramid(self.backbone.endpoints(x))
        boxes = self.select_proposals(*self.rpn(pyramid), sizes)
        outputs = []
        for stage in range(len(self.thresholds)):
            if stage:
                boxes = self.refine(boxes, outputs[-1][1], stage, sizes)
            outputs.append(self.heads(self.pool(pyramid, boxes), stage))
        found = self.select_detections(boxes, outputs, sizes)
        if not self.fields["mask_convolutions"]:
            return found
        pooled = self.pool(pyramid, [boxes for boxes, *_ in found], POOLED)
        masks = self.masks(pooled, [classes for *_, classes in found])
        return [(*part, of_image) for part, of_image in zip(found, masks, strict=True)]

    def losses(
        self, x: torch.Tensor, sizes: list, objects: list, masks: Tensors | None, draw: Draw
    ) -> dict:
        """Return the losses, scalars by our names."""
        pyramid = self.backbone.pyramid(self.backbone.endpoints(x))
        logits, deltas = self.rpn(pyramid)
        proposals = self.select_proposals(logits, deltas, sizes)
        losses = dict(
            zip(
                ("loss_rpn_cls", "loss_rpn_loc"),
                self.rpn_losses(logits, deltas, objects, draw),
                strict=True,
            )
        )
        first = regions = self.sample_regions(proposals, objects, draw)
        for stage in range(len(self.thresholds)):
            if stage:
                regions = self.match_regions(regions, deltas, stage, objects, sizes)
            pooled = self.pool(pyramid, [part.boxes for part in regions])
            if self.cascade:  # the stages share one gradient into the pyramid
                pooled.register_hook(lambda gradient: gradient / len(self.thresholds))
            logits, deltas = self.heads(pooled, stage)
            name = f"_stage{stage}" if self.cascade else ""
            of_class, of_box = self.box_losses(logits, deltas, regions, stage)
            losses |= {f"loss_cls{name}": of_class, f"loss_box_reg{name}": of_box}
        if masks is not None:
            positive = foreground(first, self.fields["num_classes"])
            pooled = self.pool(pyramid, [part.boxes for part in positive], POOLED)
            logits = self.mask_logits(pooled, [part.classes for part in positive])
            losses["loss_mask"] = mask_loss(logits, mask_targets(masks, positive))
        return losses

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
            chosen = finite & nonempty(box)
            box, score = box[chosen], score[chosen]
            kept = batched_nms(box, score, levels[chosen], self.fields["proposal_nms"])
            found.append(box[kept[:num]])
        return found

    def pool(self, pyramid: Tensors, boxes: Sequence[torch.Tensor], cells: int = 7) -> torch.Tensor:
        """Return the regions (R, C, cells, cells) of all images."""
        regions = with_index(boxes)
        side = areas(regions[:, 1:]).sqrt()
        level = sum((side >= border).long() for border in (112, 224, 448))
        pooled = pyramid[0].new_zeros(len(regions), pyramid[0].shape[1], cells, cells)
        for i, (x, stride) in enumerate(zip(pyramid[:4], STRIDES[:4], strict=True)):
            index = (level == i).nonzero()[:, 0]
            part = roi_align(x, regions[index], cells, 1 / stride, sampling_ratio=-1, aligned=True)
            pooled.index_put_((index,), part)
        return pooled

    def heads(self, pooled: torch.Tensor, stage: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the logits (R, K + 1) and deltas (R, K or 1, 4) of regions."""
        head, predictor = (self.roi_heads[name] for name in ("box_head", "box_predictor"))
        if self.cascade:
            head, predictor = head[stage], predictor[stage]
        for i in range(1, 5):
            pooled = head[f"conv{i}"](pooled).relu()
        x = head["fc1"](pooled.flatten(1)).relu()
        return predictor["cls_score"](x), predictor["bbox_pred"](x).unflatten(1, (-1, 4))

    def mask_logits(self, pooled: torch.Tensor, classes: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the logits (R, 28, 28) of the masks of regions of some classes."""
        return self.roi_heads["mask_head"](pooled, torch.cat(classes))

    def masks(self, pooled: torch.Tensor, classes: Sequence[torch.Tensor]) -> tuple:
        """Return the masks (D, 28, 28) of the detections of each image, probabilities."""
        return self.mask_logits(pooled, classes).sigmoid().split([len(part) for part in classes])

    @torch.no_grad()
    def refine(self, boxes: Tensors, deltas: torch.Tensor, stage: int, sizes: list) -> Tensors:
        """Return the boxes of each image for a stage, from the deltas of the one before."""
        refined = decode(torch.cat(boxes), deltas[:, 0], box_weights(stage - 1))
        parts = zip(refined.split([len(part) for part in boxes]), sizes, strict=True)
        return [clip_boxes_to_image(part, size) for part, size in parts]

    def select_detections(
        self, regions: Tensors, outputs: list[tuple[torch.Tensor, torch.Tensor]], sizes: list
    ) -> list[tuple[torch.Tensor, ...]]:
        """Return the boxes, scores and classes of each image, from the outputs of all stages."""
        counts = [len(part) for part in regions]
        deltas, weights = outputs[-1][1], box_weights(len(outputs) - 1)
        boxes = decode(torch.cat(regions)[:, None], deltas, weights).split(counts)
        scores = torch.stack([logits.softmax(1) for logits, _ in outputs]).mean(0).split(counts)
        return [self._detections(*part) for part in zip(boxes, scores, sizes, strict=True)]

    def _detections(
        self, boxes: torch.Tensor, scores: torch.Tensor, size: tuple[int, int]
    ) -> tuple[torch.Tensor, ...]:
        finite = boxes.isfinite().all(2).all(1) & scores.isfinite().all(1)
        boxes, scores = clip_boxes_to_image(boxes[finite], size), scores[finite, :-1]
        row, kind = (scores > self.fields["score_threshold"]).nonzero(as_tuple=True)
        boxes, scores = boxes[row, kind.clamp(max=boxes.shape[1] - 1)], scores[row, kind]
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
            rule = f["rpn_samples"], f["rpn_positives"], draw
            chosen = sample(positive, ~positive & (best < low), *rule)
            both = torch.cat(chosen)
            target = torch.zeros(len(both), device=logit.device)
            target[: len(chosen[0])] = 1
            entropy = binary_cross_entropy_with_logits(logit[both], target, reduction="sum")
            objectness = objectness + entropy
            wanted = encode(anchors[chosen[0]], boxes[index[chosen[0]]], ANCHOR_WEIGHTS)
            of_boxes = of_boxes + (delta[chosen[0]] - wanted).abs().sum()
        count = f["rpn_samples"] * len(objects)
        return [objectness / count, of_boxes / count]

    @torch.no_grad()
    def sample_regions(self, proposals: Tensors, objects: list, draw: Draw) -> list[Regions]:
        """Return the regions of each image that the heads are trained on."""
        f, found = self.fields, []
        for boxes, of_image in zip(proposals, objects, strict=True):
            every = torch.cat((boxes, of_image[0]))
            regions = label(every, of_image, self.thresholds[0], f["num_classes"])
            positive = regions.classes < f["num_classes"]
            chosen = sample(positive, ~positive, f["roi_samples"], f["roi_positives"], draw)
            found.append(Regions(*(tensor[torch.cat(chosen)] for tensor in regions)))
        return found

    def match_regions(
        self, regions: list[Regions], deltas: torch.Tensor, stage: int, objects: list, sizes: list
    ) -> list[Regions]:
        """Return the regions of each image that a later stage of a cascade is trained on."""
        threshold, num_classes = self.thresholds[stage], self.fields["num_classes"]
        refined = self.refine([part.boxes for part in regions], deltas, stage, sizes)
        return [
            label(boxes[nonempty(boxes)], of_image, threshold, num_classes)
            for boxes, of_image in zip(refined, objects, strict=True)
        ]

    def box_losses(
        self, logits: torch.Tensor, deltas: torch.Tensor, regions: list[Regions], stage: int
    ) -> Tensors:
        """Return the losses of classes and of boxes."""
        boxes, classes, _, targets = (torch.cat(part) for part in zip(*regions, strict=True))
        positive = (classes < self.fields["num_classes"]).nonzero()[:, 0]
        wanted = encode(boxes[positive], targets[positive], box_weights(stage))
        group = classes[positive].clamp(max=deltas.shape[1] - 1)
        distance = (deltas[positive, group] - wanted).abs().sum()
        return [cross_entropy(logits, classes), distance / len(classes)]
