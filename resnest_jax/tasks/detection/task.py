"""Detection: inputs, losses and scores of a model that returns boxes."""

import dataclasses
from typing import cast

import jax
import jax.numpy as jnp

from resnest_jax.config.detection import BEST_METRIC
from resnest_jax.data.sources.coco_boxes import GroundTruth
from resnest_jax.models.detection.detections import Detections
from resnest_jax.models.detection.rcnn import RCNN
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

    best_metric = BEST_METRIC
    curves = {
        "loss": {
            "loss": "all",
            "loss_rpn_cls": "objectness",
            "loss_rpn_loc": "boxes of proposals",
            "loss_cls": "classes",
            "loss_box_reg": "boxes",
        },
        "evaluation (%)": {"eval_box_ap": "AP", "eval_box_ap50": "AP at IoU 0.5"},
    }

    def init(self, rng: jax.Array) -> Variables:
        """Return newly initialised variables of the model."""
        images = jnp.zeros((1, INIT_SIZE, INIT_SIZE, 3))
        return self.model.init(rng, images, method="call_modules")

    def loss(
        self, variables: Variables, batch: Batch, rng: jax.Array, progress: jax.Array | float
    ) -> tuple[jax.Array, Aux]:
        """Return the sum of the losses of a batch, each of which is logged.

        The batch is ``image`` uint8 (B, H, W, 3), ``size`` (B, 2), ``boxes`` (B, N, 4), ``classes``
        (B, N) and ``object_valid`` (B, N), see ``transforms.TrainTransform``.
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
            mutable=["batch_stats"],
            rngs={"dropout": dropout},
            method="losses",
        )
        total = jnp.sum(jnp.stack([*losses.values()]))
        return total, Aux(updates["batch_stats"], losses)

    def eval_step(self, variables: Variables, batch: Batch) -> EvalOutput:
        """Return the detections of every image."""
        images = normalize_padded(batch["image"], batch["size"])
        found = cast(tuple, self.model.apply(variables, images, batch["size"], method="detect"))
        return EvalOutput({}, Detections(*found[:4]))  # without masks

    def metric(self) -> CocoAP:
        """Return a metric of COCO's figures."""
        return CocoAP(self.truth)
