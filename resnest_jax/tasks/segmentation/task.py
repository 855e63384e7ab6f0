"""Semantic segmentation: inputs, loss and scores of a model that returns logits per pixel."""

import dataclasses
from typing import cast

import jax
import jax.numpy as jnp

from resnest_jax.config.segmentation import BEST_METRIC
from resnest_jax.data.label_tables import IGNORED
from resnest_jax.errors import InputError
from resnest_jax.models.deeplab import SegmentationModel
from resnest_jax.models.inputs import normalize
from resnest_jax.tasks.segmentation.losses import pixel_cross_entropy
from resnest_jax.tasks.segmentation.metrics import ConfusionMatrix, confusion_matrix
from resnest_jax.training.task import Aux, Batch, EvalOutput, Variables


@dataclasses.dataclass(frozen=True)
class Segmentation:
    """The segmentation task of a run.

    Attributes:
      model: see ``models.deeplab.SegmentationModel``.
      crop_size: side in pixels of the images to initialise the model with.
      class_names: a name per class.
      auxiliary_weight: weight of the auxiliary head's loss.
      class_weights: weight of each class in the training loss; empty: all 1.
      palette: colour of each class in pictures, RGB from 0 to 255.

    Raises:
      InputError: if a field is out of range.
    """

    model: SegmentationModel
    crop_size: int
    class_names: tuple[str, ...]
    auxiliary_weight: float = 0.2
    class_weights: tuple[float, ...] = ()
    palette: tuple[tuple[int, int, int], ...] = ()

    best_metric = BEST_METRIC
    curves = {
        "loss": {"loss": "train", "eval_loss": "eval"},
        "evaluation (%)": {"eval_miou": "mean IoU", "eval_pixel_accuracy": "pixel accuracy"},
    }

    def __post_init__(self):
        if not 0 <= self.auxiliary_weight < float("inf"):
            raise InputError(
                "loss.auxiliary_weight must not be negative, and finite; got "
                f"{self.auxiliary_weight}"
            )

    def init(self, rng: jax.Array) -> Variables:
        """Return newly initialised variables of the model."""
        return self.model.init(rng, jnp.zeros((1, self.crop_size, self.crop_size, 3)))

    def loss(
        self, variables: Variables, batch: Batch, rng: jax.Array, progress: jax.Array | float
    ) -> tuple[jax.Array, Aux]:
        """Return the loss of a batch: ``image`` uint8 (B, H, W, 3), ``labels`` uint8 (B, H, W).

        The mean cross-entropy of the labelled pixels, with the auxiliary head's times its weight;
        both are logged.
        """
        scores, updates = self.model.apply(
            variables,
            normalize(batch["image"]),
            train=True,
            progress=progress,
            mutable=["batch_stats"],
            rngs={"dropout": rng},
            method="scores",
        )
        losses = {head: self._head_loss(x, batch["labels"]) for head, x in scores.items()}
        if "aux" not in losses:
            return losses["out"], Aux(updates["batch_stats"], {})
        metrics = {"main_loss": losses["out"], "auxiliary_loss": losses["aux"]}
        total = losses["out"] + self.auxiliary_weight * losses["aux"]
        return total, Aux(updates["batch_stats"], metrics)

    def _head_loss(self, scores: jax.Array, labels: jax.Array) -> jax.Array:
        """Return the loss of scores (B, h, w, C) at the backbone's stride."""

        # The largest arrays of a step are at the size of the labels: none waits for its gradient.
        @jax.checkpoint
        def loss(scores: jax.Array) -> jax.Array:
            logits = self.model.logits_at(scores, labels.shape)
            return pixel_cross_entropy(logits, labels, self.class_weights)

        return loss(scores)

    def eval_step(self, variables: Variables, batch: Batch) -> EvalOutput:
        """Return sums over the labelled pixels of the valid images: loss, confusion matrix."""
        logits = cast(jax.Array, self.model.apply(variables, normalize(batch["image"])))
        labels = jnp.where(batch["valid"][:, None, None], batch["labels"], IGNORED)
        loss = pixel_cross_entropy(logits, labels) * jnp.sum(labels != IGNORED)
        return EvalOutput({"loss": loss, "confusion": confusion_matrix(labels, logits)})

    def metric(self) -> ConfusionMatrix:
        """Return a metric of the summed confusion matrix."""
        return ConfusionMatrix(len(self.class_names))
