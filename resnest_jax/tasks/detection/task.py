"""Detection: inputs, losses and scores of a model that returns boxes, and maybe masks."""

import dataclasses
from collections.abc import Mapping
from typing import cast

import jax
import jax.numpy as jnp

from resnest_jax.config.detection import BEST_METRIC, BEST_METRIC_OF_MASKS
from resnest_jax.data.sources.coco_boxes import GroundTruth
from resnest_jax.models.detection.detections import Detections, Instances
from resnest_jax.models.detection.rcnn import RCNN
from resnest_jax.models.detection.roi_heads import stage_names
from resnest_jax.models.inputs import normalize_padded
from resnest_jax.tasks.detection.metrics import CocoAP
from resnest_jax.training.task import Aux, Batch, EvalOutput, Variables

INIT_SIZE = 64  # side of the image to initialise the model with; no parameter depends on it


@dataclasses.dataclass(frozen=True)
class Detection:
    """The detection task of a run.

    Attributes:
      model: see ``models.detection.rcnn.RCNN``.
      truth: objects of the evaluation images.
    """

    model: RCNN
    truth: GroundTruth

    @property
    def best_metric(self) -> str:
        """Average precision of the boxes, of a model with masks that of the masks."""
        return BEST_METRIC_OF_MASKS if self._has_masks else BEST_METRIC

    @property
    def curves(self) -> Mapping[str, Mapping[str, str]]:
        """All losses; average precision, first that of ``best_metric``."""
        losses = {"loss": "all", "loss_rpn_cls": "objectness", "loss_rpn_loc": "proposals"}
        for number in stage_names(self.model.cascade_thresholds):
            stage, which = (f"_stage{number}", f" {number}") if number else ("", "")
            losses[f"loss_cls{stage}"] = f"classes{which}"
            losses[f"loss_box_reg{stage}"] = f"boxes{which}"
        if self._has_masks:
            losses["loss_mask"] = "masks"
        kinds = ("mask", "box") if self._has_masks else ("box",)
        scores = {f"eval_{kind}_ap{iou}": f"{kind} AP{iou}" for kind in kinds for iou in ("", "50")}
        return {"loss": losses, "evaluation (%)": scores}

    @property
    def _has_masks(self) -> bool:
        return self.model.mask_convolutions > 0

    def init(self, rng: jax.Array) -> Variables:
        """Return newly initialised variables of the model."""
        images = jnp.zeros((1, INIT_SIZE, INIT_SIZE, 3))
        return self.model.init(rng, images, method="call_modules")

    def loss(
        self, variables: Variables, batch: Batch, rng: jax.Array, progress: jax.Array | float
    ) -> tuple[jax.Array, Aux]:
        """Return the sum of the losses of a batch, each of which is logged.

        The batch is ``image`` uint8 (B, H, W, 3), ``size`` (B, 2), ``boxes`` (B, N, 4), ``classes``
        (B, N), ``object_valid`` (B, N) and, of a model with masks, ``masks`` (B, N, H, W / 8), see
        ``transforms.TrainTransform``.
        """
        samples, dropout = jax.random.split(rng)
        losses, updates = self.model.apply(
            variables,
            normalize_padded(batch["image"], batch["size"]),
            batch["size"],
            batch["boxes"],
            batch["classes"],
            batch["object_valid"],
            samples,
            progress,
            batch.get("masks"),
            mutable=["batch_stats"],
            rngs={"dropout": dropout},
            method="losses",
        )
        total = jnp.sum(jnp.stack([*losses.values()]))
        return total, Aux(updates["batch_stats"], losses)

    def eval_step(self, variables: Variables, batch: Batch) -> EvalOutput:
        """Return the detections of every image."""
        return EvalOutput({}, detect(self.model, variables, batch))

    def metric(self) -> CocoAP:
        """Return a metric of COCO's figures, of masks too if the model has them."""
        return CocoAP(self.truth, masks=self._has_masks)


def detect(model: RCNN, variables: Variables, batch: Batch) -> Detections | Instances:
    """Return the detections in images uint8 (B, H, W, 3) of ``size`` (B, 2) without padding."""
    images = normalize_padded(batch["image"], batch["size"])
    found = model.apply(variables, images, batch["size"], method="detect")
    return cast(Detections | Instances, found)
