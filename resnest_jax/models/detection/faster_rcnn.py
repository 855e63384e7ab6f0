"""Faster R-CNN with a feature pyramid, on any backbone of the zoo."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from resnest_jax.errors import InputError
from resnest_jax.models.detection import anchors
from resnest_jax.models.detection.boxes import Weights, decode
from resnest_jax.models.detection.detections import Detections, select_detections
from resnest_jax.models.detection.fpn import FPN, LEVELS
from resnest_jax.models.detection.losses import box_losses, rpn_losses
from resnest_jax.models.detection.proposals import Proposals, select_proposals
from resnest_jax.models.detection.roi_align import assign_levels, roi_align
from resnest_jax.models.detection.roi_heads import BoxHead, BoxPredictor
from resnest_jax.models.detection.rpn import RPNHead, RPNOutput
from resnest_jax.models.detection.targets import (
    Objects,
    Regions,
    sample_anchors,
    sample_regions,
)
from resnest_jax.models.layers.convolution import Conv
from resnest_jax.models.layers.normalization import BatchNorm
from resnest_jax.models.resnest import ResNeSt

BOX_WEIGHTS: Weights = (10.0, 10.0, 5.0, 5.0)  # of dx, dy, dw, dh
POOLED = 7  # cells on each side of a pooled box


class FasterRCNN(nn.Module):
    """Faster R-CNN (arXiv 1506.01497) with a feature pyramid, as the ResNeSt authors train it.

    The methods are ``detect`` and ``losses``; a call is ``detect``. Images are (B, H, W, 3) of any
    float dtype, normalised, then padded with zeros at the right and at the bottom; their ``sizes``
    (B, 2) are height and width before that. Boxes are (x0, y0, x1, y1) in pixels of the images.

    Attributes:
      backbone: a model without head, ``num_classes=0``, of output stride 32; its ``dtype``,
        ``norm``, ``norm_groups``, ``implementation`` and ``platform`` hold for the other layers.
      num_classes: classes of objects, without the background.
      features: channels of the pyramid and of the convolutions on it.
      hidden: units of the box head's dense layer.
      anchor_sizes: square roots of the areas of the anchors in pixels, of levels p2 to p6.
      anchor_ratios: their heights divided by their widths.
      rpn_thresholds: overlaps with an object below which an anchor is background, and from which
        it is foreground.
      rpn_samples: anchors of an image that the losses look at.
      rpn_positives: the largest fraction of foreground among them.
      train_candidates, test_candidates: anchors of the highest scores of each level that become
        proposals.
      train_proposals, test_proposals: proposals of an image after non-maximum suppression.
      proposal_nms: overlap above which it suppresses the proposal of the lower score.
      roi_threshold: overlap with an object from which a proposal is foreground.
      roi_samples: proposals of an image that the losses look at.
      roi_positives: the largest fraction of foreground among them.
      score_threshold: detections have a higher score.
      detection_nms: as ``proposal_nms``, of detections of one class.
      detections: most detections of an image.

    Raises:
      InputError: if a field is out of range, or images have another rank or are too small.
    """

    backbone: ResNeSt
    num_classes: int = 80
    features: int = 256
    hidden: int = 1024
    anchor_sizes: tuple[float, ...] = anchors.SIZES
    anchor_ratios: tuple[float, ...] = anchors.RATIOS
    rpn_thresholds: tuple[float, float] = (0.3, 0.7)
    rpn_samples: int = 256
    rpn_positives: float = 0.5
    train_candidates: int = 2000
    test_candidates: int = 1000
    train_proposals: int = 1000
    test_proposals: int = 1000
    proposal_nms: float = 0.7
    roi_threshold: float = 0.5
    roi_samples: int = 512
    roi_positives: float = 0.25
    score_threshold: float = 0.05
    detection_nms: float = 0.5
    detections: int = 100

    def __post_init__(self) -> None:
        _check_fields(self)
        super().__post_init__()

    def setup(self) -> None:
        b = self.backbone
        conv = partial(Conv, implementation=b.implementation, platform=b.platform, dtype=b.dtype)
        norm = partial(BatchNorm, mode=b.norm, groups=b.norm_groups, dtype=b.dtype)
        self.fpn = FPN(self.features, conv=conv, norm=norm)
        self.rpn = RPNHead(len(self.anchor_ratios), conv=conv)
        self.box_head = BoxHead(self.hidden, conv=conv, norm=norm, dtype=b.dtype)
        self.box_predictor = BoxPredictor(self.num_classes)

    def __call__(self, images: jax.Array, sizes: jax.Array | None = None) -> Detections:
        """Detect objects, see ``detect``; without ``sizes`` the images are not padded."""
        if sizes is None:
            sizes = jnp.tile(jnp.array([images.shape[1:3]]), (len(images), 1))
        return self.detect(images, sizes)

    def detect(self, images: jax.Array, sizes: jax.Array) -> Detections:
        """Return the objects in images, best score first.

        Args:
          images: (B, H, W, 3).
          sizes: (B, 2), their heights and widths without padding.

        Returns:
          ``boxes`` (B, detections, 4) and ``scores`` (B, detections) float32, ``classes`` int32
          and ``valid`` bool (B, detections).
        """
        pyramid = self.pyramid(images)
        proposals = self.proposals(pyramid, sizes)
        outputs = self.predict(self.pool(pyramid, proposals.boxes))
        return self.select_detections(proposals, *outputs, sizes)

    def losses(
        self,
        images: jax.Array,
        sizes: jax.Array,
        boxes: jax.Array,
        classes: jax.Array,
        valid: jax.Array,
        rng: jax.Array | None,
        progress: jax.Array | float = 1.0,
    ) -> dict[str, jax.Array]:
        """Return the losses of training, whose sum is to be minimised; update ``batch_stats``.

        Args:
          images: (B, H, W, 3).
          sizes: (B, 2), their heights and widths without padding.
          boxes: (B, G, 4), of objects and padding.
          classes: (B, G) integers, 0 to ``num_classes - 1``.
          valid: (B, G) bool, which ones are objects.
          rng: key of the samples of anchors and proposals; None takes the first ones.
          progress: completed fraction of training, see ``ResNeSt``.

        Returns:
          Scalars, float32: ``loss_rpn_cls`` and ``loss_rpn_loc``, sums divided by
          ``B * rpn_samples``; ``loss_cls`` and ``loss_box_reg``, by the number of sampled regions.
        """
        keys = (None, None) if rng is None else jax.random.split(rng, (2, len(images)))
        objects = Objects(boxes, classes, valid)
        pyramid = self.pyramid(images, True, progress)
        output = self.rpn_output(pyramid)
        rpn_class, rpn_box = self.rpn_losses(output, objects, keys[0])
        proposals = self.select_proposals(output, sizes, train=True)
        regions = self.sample_regions(proposals, objects, keys[1])
        predictions = self.predict(self.pool(pyramid, regions.boxes), True, regions.valid)
        box_class, box_box = _box_losses(*jax.tree.map(_merge_images, (*predictions, regions)))
        return {
            "loss_rpn_cls": rpn_class,
            "loss_rpn_loc": rpn_box,
            "loss_cls": box_class,
            "loss_box_reg": box_box,
        }

    def call_modules(self, images: jax.Array) -> None:
        """Call every module: ``init`` with this method is as with ``detect``, in less time."""
        pyramid = self.pyramid(images)
        self.rpn(pyramid["p2"])
        pooled = jnp.zeros((1, POOLED, POOLED, self.features), images.dtype)
        self.box_predictor(self.box_head(pooled))

    def pyramid(
        self, images: jax.Array, train: bool = False, progress: jax.Array | float = 1.0
    ) -> dict[str, jax.Array]:
        """Return the maps ``p2`` (B, H/4, W/4, features) to ``p6`` (B, H/64, W/64, features)."""
        return self.fpn(self.backbone.features(images, train, progress), train)

    def proposals(self, pyramid: dict[str, jax.Array], sizes: jax.Array) -> Proposals:
        """Return the proposals of ``detect``; each array has a first axis of B images."""
        return self.select_proposals(self.rpn_output(pyramid), sizes)

    def pool(self, pyramid: dict[str, jax.Array], boxes: jax.Array) -> jax.Array:
        """Pool boxes (B, R, 4) into (B, R, 7, 7, features), each from the level of its size."""
        levels = [pyramid[f"p{level}"] for level in LEVELS]

        def of_image(levels: list[jax.Array], boxes: jax.Array) -> jax.Array:
            strides = anchors.STRIDES[: len(levels)]
            return roi_align(levels, strides, boxes, assign_levels(boxes), POOLED)

        return jax.vmap(of_image)(levels, boxes)

    def rpn_output(self, pyramid: dict[str, jax.Array]) -> RPNOutput:
        """Return what the region proposal network says of the levels of a pyramid."""
        settings = zip(pyramid.values(), anchors.STRIDES, self.anchor_sizes, strict=True)
        output = RPNOutput([], [], [])
        for x, stride, size in settings:
            logits, deltas = self.rpn(x)
            images, height, width, _ = x.shape
            output.logits.append(logits.reshape(images, -1))
            output.deltas.append(deltas.reshape(images, -1, 4))
            output.anchors.append(
                anchors.anchors((height, width), stride, size, self.anchor_ratios)
            )
        return output

    def select_proposals(
        self, output: RPNOutput, sizes: jax.Array, train: bool = False
    ) -> Proposals:
        """Return the proposals of images, each array with a first axis of B; ``sizes`` (B, 2)."""
        test = (self.test_candidates, self.test_proposals)
        num_before, num = (self.train_candidates, self.train_proposals) if train else test
        settings = {"num_before": num_before, "num": num, "threshold": self.proposal_nms}

        def of_image(
            logits: list[jax.Array], deltas: list[jax.Array], size: jax.Array
        ) -> Proposals:
            return select_proposals(logits, deltas, output.anchors, size, **settings)

        return jax.vmap(of_image)(output.logits, output.deltas, sizes)

    def select_detections(
        self, proposals: Proposals, logits: jax.Array, deltas: jax.Array, sizes: jax.Array
    ) -> Detections:
        """Return the detections of images, see ``detect``.

        Args:
          proposals: (B, R) of them.
          logits: (B, R, num_classes + 1), the background last.
          deltas: (B, R, num_classes, 4).
          sizes: (B, 2), heights and widths of the images without padding.
        """
        boxes = decode(proposals.boxes[:, :, None], deltas, BOX_WEIGHTS)

        def of_image(*arrays: jax.Array) -> Detections:
            thresholds = {"score_threshold": self.score_threshold, "threshold": self.detection_nms}
            return select_detections(*arrays, num=self.detections, **thresholds)[0]

        return jax.vmap(of_image)(boxes, nn.softmax(logits), proposals.valid, sizes)

    def rpn_losses(
        self, output: RPNOutput, objects: Objects, keys: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """Return the losses of objectness and of boxes, with B keys of the samples or None."""
        every = jnp.concatenate(output.anchors)
        low, high = self.rpn_thresholds
        rule = {"num": self.rpn_samples, "fraction": self.rpn_positives, "low": low, "high": high}

        def of_image(
            logits: jax.Array, deltas: jax.Array, objects: Objects, key: jax.Array | None
        ) -> tuple[jax.Array, jax.Array]:
            drawn, targets = sample_anchors(every, objects, **rule, key=key)
            return rpn_losses(logits, deltas, every, drawn, targets, num=self.rpn_samples)

        logits, deltas = (jnp.concatenate(parts, 1) for parts in (output.logits, output.deltas))
        objectness, of_boxes = jax.vmap(of_image)(logits, deltas, objects, keys)
        return jnp.mean(objectness), jnp.mean(of_boxes)

    def sample_regions(
        self, proposals: Proposals, objects: Objects, keys: jax.Array | None
    ) -> Regions:
        """Sample the regions (B, roi_samples) that the box head is trained on."""
        rule = {"num": self.roi_samples, "fraction": self.roi_positives}
        rule |= {"threshold": self.roi_threshold, "num_classes": self.num_classes}

        def of_image(proposals: Proposals, objects: Objects, key: jax.Array | None) -> Regions:
            return sample_regions(proposals.boxes, proposals.valid, objects, **rule, key=key)

        return jax.vmap(of_image)(proposals, objects, keys)

    def predict(
        self, pooled: jax.Array, train: bool = False, valid: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Return logits (B, R, num_classes + 1) and deltas (B, R, num_classes, 4) of regions.

        Args:
          pooled: (B, R, 7, 7, features), see ``pool``.
          train: whether the head's norms take the statistics of the regions of all images.
          valid: (B, R) bool, of which regions; None is all.
        """
        merged, valid = jax.tree.map(_merge_images, (pooled, valid))
        logits, deltas = self.box_predictor(self.box_head(merged, train, valid))
        shape = pooled.shape[:2]
        return logits.reshape(*shape, -1), deltas.reshape(*shape, -1, 4)


def _box_losses(
    logits: jax.Array, deltas: jax.Array, regions: Regions
) -> tuple[jax.Array, jax.Array]:
    """Return the losses of classes and of boxes over the regions of all images."""
    boxes, classes, _, targets, valid = regions
    return box_losses(logits, deltas, boxes, classes, targets, valid, weights=BOX_WEIGHTS)


def _merge_images(x: jax.Array) -> jax.Array:
    """Reshape (B, N, ...) -> (B * N, ...)."""
    return x.reshape(-1, *x.shape[2:])


COUNTS = ("num_classes", "features", "hidden", "rpn_samples", "roi_samples", "detections")
COUNTS += ("train_candidates", "test_candidates", "train_proposals", "test_proposals")
FRACTIONS = ("rpn_positives", "proposal_nms", "roi_threshold", "roi_positives")
FRACTIONS += ("score_threshold", "detection_nms")


def _check_fields(model: FasterRCNN) -> None:
    backbone = model.backbone
    if not isinstance(backbone, ResNeSt) or backbone.num_classes or backbone.output_stride != 32:
        raise InputError(
            "model field backbone must be a model of the zoo with num_classes=0, output_stride=32"
        )
    for field in COUNTS:
        value = getattr(model, field)
        if not isinstance(value, int) or value < 1:
            raise InputError(f"model field {field} must be an integer >= 1; got {value!r}")
    for field in FRACTIONS:
        value = getattr(model, field)
        if not isinstance(value, int | float) or not 0 <= value <= 1:
            raise InputError(f"model field {field} must be in [0, 1]; got {value!r}")
    low_high = model.rpn_thresholds
    if not _numbers(low_high, 2) or not 0 <= low_high[0] <= low_high[1] <= 1:
        raise InputError(
            "model field rpn_thresholds must be two numbers in [0, 1], the lower one first; got "
            f"{low_high!r}"
        )
    sizes, ratios = model.anchor_sizes, model.anchor_ratios
    if not _numbers(sizes, len(anchors.STRIDES)) or min(sizes) <= 0:
        raise InputError(f"model field anchor_sizes must be five positive numbers; got {sizes!r}")
    if not isinstance(ratios, tuple) or not _numbers(ratios, len(ratios)) or min(ratios) <= 0:
        raise InputError(f"model field anchor_ratios must be positive numbers; got {ratios!r}")


def _numbers(value: object, length: int) -> bool:
    """Return whether the value is a tuple of ``length`` numbers, at least one."""
    return (
        isinstance(value, tuple)
        and 0 < length == len(value)
        and all(isinstance(number, int | float) for number in value)
    )
