"""Image classification: inputs, loss and metrics of a model that returns logits."""

import dataclasses
from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from resnest_jax.config.classification import BEST_METRIC
from resnest_jax.errors import InputError
from resnest_jax.models.inputs import normalize
from resnest_jax.tasks.classification.mixing import Mixing
from resnest_jax.training.evaluation import Sums
from resnest_jax.training.task import Aux, Batch, EvalOutput, Metrics, Variables

# Above this share of a mixed image, the sigmoid loss sets the target of its class to 1, as in
# arXiv 2110.00476; the threshold is that of timm's recipes.
PRESENT = 0.2
LOSSES = ("softmax", "sigmoid")
SMOOTHINGS = ("all", "others")


def smooth_targets(labels: jax.Array, num_classes: int, mass: float, over: str) -> jax.Array:
    """Make targets (B, num_classes), float32, from labels (B,); ``mass`` leaves the true class.

    The mass is spread over ``all`` classes, the true one included (the authors' code), or over the
    ``others`` (ResNeSt paper, section 5.1).
    """
    targets = jax.nn.one_hot(labels, num_classes)
    if over == "others":
        return targets * (1 - mass) + (1 - targets) * (mass / (num_classes - 1))
    return optax.smooth_labels(targets, mass)


def apply_model(model: nn.Module, variables: Variables, images: jax.Array) -> jax.Array:
    """Return the logits of normalised images, in evaluation mode."""
    return cast(jax.Array, model.apply(variables, images))  # Flax's type includes a pair with state


def sum_hits(logits: jax.Array, labels: jax.Array, valid: jax.Array) -> Metrics:
    """Return sums over the valid images: loss, top-1 and top-5 hits, count.

    Args:
      logits: (B, num_classes); a constant added to all logits of an image changes nothing.
      labels, valid: (B,), int32 and bool.
    """
    true_logits = jnp.take_along_axis(logits, labels[:, None], -1)
    # Ties count against the model, so that equal logits score nothing.
    rank = jnp.sum(logits >= true_logits, -1)  # 1 is first; 0 where the logits are NaN
    values = {
        "loss": optax.softmax_cross_entropy_with_integer_labels(logits, labels),
        "top1": rank == 1,
        "top5": (rank >= 1) & (rank <= 5),
        "count": jnp.ones_like(valid),
    }
    return {name: jnp.sum(jnp.where(valid, value, 0)) for name, value in values.items()}


@dataclasses.dataclass(frozen=True)
class Classification:
    """The classification task of a run.

    Attributes:
      model: a module from normalised images (B, H, W, channels) to logits (B, num_classes).
      image_size, channels: of the images to initialise the model with.
      loss_name: ``softmax`` cross-entropy, or ``sigmoid``: binary cross-entropy, mean over classes
        (arXiv 2110.00476).
      label_smoothing: mass taken from the true class.
      smooth_over: classes that get it, see ``smooth_targets``.
      class_weights: weights w of the classes in the training loss; none: all are 1. With targets t,
        smoothed and mixed, and probabilities p, ``softmax`` is the sum of -w[c] t[i, c] log p[i, c]
        over images i and classes c, divided by the sum of the weights of the labels, mixed as the
        images are. Without mixing this is PyTorch's ``CrossEntropyLoss(weight, label_smoothing)``.
        ``sigmoid`` multiplies the terms of class c by w[c], as ``BCEWithLogitsLoss(weight)``.
      mixing: mixup and cutmix.

    Raises:
      InputError: if a field is out of range.
    """

    model: nn.Module
    num_classes: int
    image_size: int
    loss_name: str = "softmax"
    label_smoothing: float = 0.0
    smooth_over: str = "all"
    class_weights: tuple[float, ...] = ()
    mixing: Mixing = dataclasses.field(default_factory=Mixing)
    channels: int = 3

    best_metric = BEST_METRIC
    curves = {
        "loss": {"loss": "train", "eval_loss": "eval"},
        "accuracy (%)": {"eval_top1": "eval top-1", "eval_top5": "eval top-5"},
    }

    def __post_init__(self):
        if self.loss_name not in LOSSES:
            raise InputError(f"loss.name must be one of {LOSSES}; got {self.loss_name!r}")
        if self.smooth_over not in SMOOTHINGS:
            raise InputError(
                f"loss.smooth_over must be one of {SMOOTHINGS}; got {self.smooth_over!r}"
            )
        if not 0 <= self.label_smoothing < 1:
            raise InputError(f"loss.label_smoothing must be in [0, 1); got {self.label_smoothing}")

    def init(self, rng: jax.Array) -> Variables:
        """Return newly initialised variables of the model."""
        images = jnp.zeros((1, self.image_size, self.image_size, self.channels))
        return self.model.init(rng, images)

    def inputs(self, rng: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        """Return the training inputs: normalised images, targets and weights.

        Targets are (B, num_classes). Weights (B, 1) are those of the labels, None if all are 1.
        """
        targets = smooth_targets(
            batch["label"], self.num_classes, self.label_smoothing, self.smooth_over
        )
        weights = None
        if self.class_weights:
            weights = jnp.array(self.class_weights)[batch["label"], None]
        images, mixed = self.mixing(rng, normalize(batch["image"]), (targets, weights))
        return images, *mixed

    def loss(
        self, variables: Variables, batch: Batch, rng: jax.Array, progress: jax.Array | float
    ) -> tuple[jax.Array, Aux]:
        """Return the mean loss of a batch: ``image`` uint8 (B, H, W, C), ``label`` int32 (B,)."""
        mixing_rng, dropout_rng = jax.random.split(rng)
        images, targets, weights = self.inputs(mixing_rng, batch)
        logits, updates = self.model.apply(
            variables,
            images,
            train=True,
            progress=progress,
            mutable=["batch_stats"],
            rngs={"dropout": dropout_rng},
        )
        return self._mean_loss(logits, targets, weights), Aux(updates["batch_stats"], {})

    def _mean_loss(
        self, logits: jax.Array, targets: jax.Array, weights: jax.Array | None
    ) -> jax.Array:
        by_class = jnp.array(self.class_weights)[None] if self.class_weights else None
        if self.loss_name == "sigmoid":
            if self.mixing.mixup or self.mixing.cutmix:
                targets = jnp.where(targets > PRESENT, 1.0, targets)
            losses = optax.sigmoid_binary_cross_entropy(logits, targets)
            return losses.mean() if by_class is None else (losses * by_class).mean()
        if by_class is None or weights is None:
            return optax.softmax_cross_entropy(logits, targets).mean()
        return optax.softmax_cross_entropy(logits, targets * by_class).sum() / weights.sum()

    def eval_step(self, variables: Variables, batch: Batch) -> EvalOutput:
        """Return sums over the valid images: loss, top-1 and top-5 hits, count.

        The loss is always the softmax cross-entropy, also if another loss trains the network.
        """
        logits = apply_model(self.model, variables, normalize(batch["image"]))
        return EvalOutput(sum_hits(logits, batch["label"], batch["valid"]))

    def metric(self) -> Sums:
        """Return a metric: the means of the sums of ``eval_step``."""
        return Sums()
