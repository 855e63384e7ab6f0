"""Two-stage detectors with a feature pyramid, on any backbone of the zoo."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from resnest_jax.errors import InputError
from resnest_jax.models.detection import anchors
from resnest_jax.models.detection.boxes import clip, decode
from resnest_jax.models.detection.detections import Detections, Instances, select_detections
from resnest_jax.models.detection.fields import check_fields
from resnest_jax.models.detection.fpn import FPN, LEVELS
from resnest_jax.models.detection.losses import box_losses, mask_loss
from resnest_jax.models.detection.mask_head import MaskHead, MaskPredictor
from resnest_jax.models.detection.masks import mask_targets
from resnest_jax.models.detection.proposals import Proposals
from resnest_jax.models.detection.roi_align import assign_levels, roi_align
from resnest_jax.models.detection.roi_heads import BoxHead, BoxPredictor, box_weights, stage_names
from resnest_jax.models.detection.rpn import RPN
from resnest_jax.models.detection.targets import Objects, Regions, match_regions, sample_regions
from resnest_jax.models.layers.convolution import Conv
from resnest_jax.models.layers.normalization import BatchNorm
from resnest_jax.models.resnest import ResNeSt

POOLED = 7  # cells on each side of a pooled box
POOLED_FOR_MASK = 14  # a predicted mask has twice as many

Pyramid = dict[str, jax.Array]


class RCNN(nn.Module):
    """Faster, Mask, Cascade and Cascade Mask R-CNN, as the ResNeSt authors train them.

    They are Faster R-CNN (arXiv 1506.01497) with a feature pyramid; with ``mask_convolutions`` a
    mask for each box too (1703.06870), with ``cascade_thresholds`` several stages, each of which
    refines the boxes of the one before (1712.00726). The methods are ``detect`` and ``losses``; a
    call is ``detect``. Images are (B, H, W, 3) of any float dtype, normalised, then padded with
    zeros at the right and at the bottom; their ``sizes`` (B, 2) are height and width before that.
    Boxes are (x0, y0, x1, y1) in pixels of the images.

    Attributes:
      backbone: a model without head, ``num_classes=0``, of output stride 32; its ``dtype``,
        ``norm``, ``norm_groups``, ``implementation`` and ``platform`` hold for the other layers.
      num_classes: classes of objects, without the background.
      features: channels of the pyramid and of the convolutions on it.
      hidden: units of a box head's dense layer.
      mask_convolutions: of the mask head; 0 is no mask head.
      cascade_thresholds: as ``roi_threshold``, of the stages after the first; () is no cascade.
        The boxes of a cascade do not depend on the class.
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
      InputError: if a field is out of range, images have another rank or are too small, or the
        objects of a model with a mask head have no masks.
    """

    backbone: ResNeSt
    num_classes: int = 80
    features: int = 256
    hidden: int = 1024
    mask_convolutions: int = 0
    cascade_thresholds: tuple[float, ...] = ()
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
        check_fields(self)
        super().__post_init__()

    def setup(self) -> None:
        b = self.backbone
        conv = partial(Conv, implementation=b.implementation, platform=b.platform, dtype=b.dtype)
        norm = partial(BatchNorm, mode=b.norm, groups=b.norm_groups, dtype=b.dtype)
        self.fpn = FPN(self.features, conv=conv, norm=norm)
        self.rpn = RPN(
            self.anchor_sizes,
            self.anchor_ratios,
            self.rpn_thresholds,
            self.rpn_samples,
            self.rpn_positives,
            self.proposal_nms,
            conv=conv,
        )
        head = partial(BoxHead, self.hidden, conv=conv, norm=norm, dtype=b.dtype)
        predictor = partial(BoxPredictor, self.num_classes, bool(self.cascade_thresholds))
        stages = stage_names(self.cascade_thresholds)
        self.box_heads = [head(name=f"box_head{stage}") for stage in stages]
        self.box_predictors = [predictor(name=f"box_predictor{stage}") for stage in stages]
        if self.mask_convolutions:
            self.mask_head = MaskHead(self.mask_convolutions, conv=conv, norm=norm, dtype=b.dtype)
            self.mask_predictor = MaskPredictor(self.num_classes)

    def __call__(self, images: jax.Array, sizes: jax.Array | None = None) -> Detections | Instances:
        """Detect objects, see ``detect``; without ``sizes`` the images are not padded."""
        if sizes is None:
            sizes = jnp.tile(jnp.array([images.shape[1:3]]), (len(images), 1))
        return self.detect(images, sizes)

    def detect(self, images: jax.Array, sizes: jax.Array) -> Detections | Instances:
        """Return the objects in images, best score first.

        Args:
          images: (B, H, W, 3).
          sizes: (B, 2), their heights and widths without padding.

        Returns:
          ``boxes`` (B, detections, 4) and ``scores`` (B, detections) float32, ``classes`` int32
          and ``valid`` bool (B, detections). With a mask head ``Instances``, which have ``masks``
          (B, detections, 28, 28) float32 too, probabilities.
        """
        pyramid = self.pyramid(images)
        found = self.boxes(pyramid, sizes)
        if not self.mask_convolutions:
            return found
        masks = self.masks(pyramid, found.boxes, found.classes)
        return Instances(*found, jnp.where(found.valid[..., None, None], masks, 0))

    def losses(
        self,
        images: jax.Array,
        sizes: jax.Array,
        boxes: jax.Array,
        classes: jax.Array,
        valid: jax.Array,
        rng: jax.Array | None,
        progress: jax.Array | float = 1.0,
        masks: jax.Array | None = None,
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
          masks: of the objects, for a mask head: (B, G, H, W / 8) uint8, the pixels of the images
            as bits, which ``numpy.packbits`` packs: 13 MB per image of 800 x 1344 for 100 objects.

        Returns:
          Scalars, float32: ``loss_rpn_cls`` and ``loss_rpn_loc``, sums divided by
          ``B * rpn_samples``; ``loss_cls`` and ``loss_box_reg``, by the number of sampled regions,
          of a cascade ``loss_cls_stage0`` and so on; ``loss_mask``, the mean over the pixels of
          the masks of the foreground among these regions, those of the first stage.
        """
        keys = (None, None) if rng is None else jax.random.split(rng, (2, len(images)))
        objects = Objects(boxes, classes, valid)
        pyramid = self.pyramid(images, True, progress)
        output = self.rpn(pyramid)
        losses = {}
        losses["loss_rpn_cls"], losses["loss_rpn_loc"] = self.rpn.losses(output, objects, keys[0])
        proposals = self.rpn.select(output, sizes, self.train_candidates, self.train_proposals)
        regions = self.sample(proposals, objects, keys[1])
        losses |= self._box_losses(pyramid, regions, objects, sizes)
        if self.mask_convolutions:
            losses["loss_mask"] = self._mask_loss(pyramid, regions, masks, sizes)
        return losses

    def call_modules(self, images: jax.Array) -> None:
        """Call every module: ``init`` with this method is as with ``detect``, in less time."""
        pyramid = self.pyramid(images)
        self.rpn(pyramid)
        pooled = jnp.zeros((1, POOLED, POOLED, self.features), images.dtype)
        for head, predictor in zip(self.box_heads, self.box_predictors, strict=True):
            predictor(head(pooled))
        if self.mask_convolutions:
            self.mask_predictor(self.mask_head(pooled), jnp.zeros(1, jnp.int32))

    def pyramid(
        self, images: jax.Array, train: bool = False, progress: jax.Array | float = 1.0
    ) -> Pyramid:
        """Return the maps ``p2`` (B, H/4, W/4, features) to ``p6`` (B, H/64, W/64, features)."""
        return self.fpn(self.backbone.features(images, train, progress), train)

    def proposals(self, pyramid: Pyramid, sizes: jax.Array) -> Proposals:
        """Return the proposals of ``detect``; each array has a first axis of B images."""
        output = self.rpn(pyramid)
        return self.rpn.select(output, sizes, self.test_candidates, self.test_proposals)

    def boxes(self, pyramid: Pyramid, sizes: jax.Array) -> Detections:
        """Return what ``detect`` does, without masks."""
        proposals = self.proposals(pyramid, sizes)
        boxes, probabilities = self._refine(pyramid, proposals.boxes, sizes)
        return self.select(boxes, probabilities, proposals.valid, sizes)

    def masks(self, pyramid: Pyramid, boxes: jax.Array, classes: jax.Array) -> jax.Array:
        """Return the masks of boxes (B, D, 4) of classes (B, D), as ``Instances`` has them."""
        return nn.sigmoid(self._mask_logits(pyramid, boxes, classes))

    def pool(self, pyramid: Pyramid, boxes: jax.Array, cells: int = POOLED) -> jax.Array:
        """Pool boxes (B, R, 4), each from the level of its size: (B, R, cells, cells, features)."""
        levels = [pyramid[f"p{level}"] for level in LEVELS]

        def of_image(levels: list[jax.Array], boxes: jax.Array) -> jax.Array:
            strides = anchors.STRIDES[: len(levels)]
            return roi_align(levels, strides, boxes, assign_levels(boxes), cells)

        return jax.vmap(of_image)(levels, boxes)

    def _refine(
        self, pyramid: Pyramid, boxes: jax.Array, sizes: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Return the last stage's boxes (B, R, num_classes or 1, 4) and the mean probabilities.

        The latter are (B, R, num_classes + 1). ``boxes`` (B, R, 4) are the proposals.
        """
        probabilities, refined = [], boxes[:, :, None]
        for stage in range(len(self.box_heads)):
            if stage:
                boxes = jax.vmap(clip)(refined[:, :, 0], sizes)
            logits, deltas = self.predict(self.pool(pyramid, boxes), stage)
            refined = decode(boxes[:, :, None], deltas, box_weights(stage))
            probabilities.append(nn.softmax(logits))
        return refined, jnp.mean(jnp.stack(probabilities), 0)

    def select(
        self, boxes: jax.Array, probabilities: jax.Array, valid: jax.Array, sizes: jax.Array
    ) -> Detections:
        """Return the detections among boxes (B, R, num_classes or 1, 4), ``valid`` (B, R)."""

        def of_image(*arrays: jax.Array) -> Detections:
            thresholds = {"score_threshold": self.score_threshold, "threshold": self.detection_nms}
            return select_detections(*arrays, num=self.detections, **thresholds)[0]

        return jax.vmap(of_image)(boxes, probabilities, valid, sizes)

    def sample(self, proposals: Proposals, objects: Objects, keys: jax.Array | None) -> Regions:
        """Sample the regions (B, roi_samples) that the heads are trained on."""
        rule = {"num": self.roi_samples, "fraction": self.roi_positives}
        rule |= {"threshold": self.roi_threshold, "num_classes": self.num_classes}

        def of_image(proposals: Proposals, objects: Objects, key: jax.Array | None) -> Regions:
            return sample_regions(proposals.boxes, proposals.valid, objects, **rule, key=key)

        return jax.vmap(of_image)(proposals, objects, keys)

    def _box_losses(
        self, pyramid: Pyramid, regions: Regions, objects: Objects, sizes: jax.Array
    ) -> dict[str, jax.Array]:
        """Return the losses of all stages, the first of which gets the regions."""
        thresholds = (self.roi_threshold, *self.cascade_thresholds)
        stages = len(thresholds)
        if stages > 1:  # they share one gradient into the pyramid
            pyramid = {level: _scale_gradient(x, 1 / stages) for level, x in pyramid.items()}
        losses, deltas = {}, None
        for stage, threshold in enumerate(thresholds):
            if deltas is not None:
                boxes = decode(regions.boxes, deltas[:, :, 0], box_weights(stage - 1))
                rule = {"threshold": threshold, "num_classes": self.num_classes}
                match = jax.vmap(partial(match_regions, **rule))
                regions = match(boxes, regions.valid, objects, sizes)
            pooled = self.pool(pyramid, regions.boxes)
            logits, deltas = self.predict(pooled, stage, True, regions.valid)
            boxes, classes, _, targets, valid = regions
            arrays = (logits, deltas, boxes, classes, targets, valid)
            of_class, of_box = box_losses(*map(_merge_images, arrays), weights=box_weights(stage))
            name = f"_stage{stage}" if stages > 1 else ""
            losses |= {f"loss_cls{name}": of_class, f"loss_box_reg{name}": of_box}
        return losses

    def _mask_loss(
        self, pyramid: Pyramid, regions: Regions, masks: jax.Array | None, sizes: jax.Array
    ) -> jax.Array:
        """Return the loss of the masks of the foreground, which is the first of the regions."""
        if masks is None:
            raise InputError("a model with a mask head needs the masks of the objects")
        most = max(1, int(self.roi_samples * self.roi_positives))
        boxes, classes, objects, _, valid = (x[:, :most] for x in regions)
        foreground = valid & (classes < self.num_classes)
        targets = jax.vmap(partial(mask_targets, cells=2 * POOLED_FOR_MASK))(
            masks, sizes, boxes, objects
        )
        own = jnp.where(foreground, classes, 0)
        logits = self._mask_logits(pyramid, boxes, own, True, foreground)
        return mask_loss(*map(_merge_images, (logits, targets, foreground)))

    def predict(
        self,
        pooled: jax.Array,
        stage: int = 0,
        train: bool = False,
        valid: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Return logits (B, R, num_classes + 1) and deltas (B, R, num_classes or 1, 4) of boxes.

        ``pooled`` is (B, R, 7, 7, features). Training normalises over all images' ``valid`` boxes.
        """
        merged, valid = jax.tree.map(_merge_images, (pooled, valid))
        logits, deltas = self.box_predictors[stage](self.box_heads[stage](merged, train, valid))
        shape = pooled.shape[:2]
        return logits.reshape(*shape, -1), deltas.reshape(*shape, -1, 4)

    def _mask_logits(
        self,
        pyramid: Pyramid,
        boxes: jax.Array,
        classes: jax.Array,
        train: bool = False,
        valid: jax.Array | None = None,
    ) -> jax.Array:
        """Return the logits (B, R, 28, 28) of the masks of boxes of some classes."""
        arrays = (self.pool(pyramid, boxes, POOLED_FOR_MASK), classes, valid)
        pooled, of_all, valid = jax.tree.map(_merge_images, arrays)
        logits = self.mask_predictor(self.mask_head(pooled, train, valid), of_all)
        return logits.reshape(*classes.shape, *logits.shape[1:])


def _scale_gradient(x: jax.Array, factor: float) -> jax.Array:
    """Return x, whose gradient is multiplied by a factor."""
    fixed = lax.stop_gradient(x)
    return fixed + factor * (x - fixed)


def _merge_images(x: jax.Array) -> jax.Array:
    """Reshape (B, N, ...) -> (B * N, ...)."""
    return x.reshape(-1, *x.shape[2:])
