"""Image classification: inputs, mixup, loss and metrics around a model that returns logits."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from resnest_jax.errors import InputError

# Of ImageNet's training images, RGB in 0..255; published weights expect them.
MEAN = np.array([123.675, 116.28, 103.53], np.float32)
STD = np.array([58.395, 57.12, 57.375], np.float32)


def normalize(images: jax.Array) -> jax.Array:
    """RGB images (B, H, W, 3), 0..255 of any dtype, to zero mean and unit variance, float32."""
    return (images.astype(jnp.float32) - MEAN[None, None, None]) / STD[None, None, None]


def mixup(
    rng: jax.Array, images: jax.Array, targets: jax.Array, alpha: float
) -> tuple[jax.Array, jax.Array]:
    """Mix every image and target with those of the reversed batch, as the authors' code does.

    One weight a batch, from Beta(alpha, alpha); the paper (section 5.1) has one a sample.
    """
    weight = jax.random.beta(rng, alpha, alpha)
    return tuple(weight * x + (1 - weight) * x[::-1] for x in (images, targets))


@dataclasses.dataclass(frozen=True)
class Classification:
    """The task of a training run.

    Attributes:
      model: a module from normalised images (B, H, W, 3) to logits (B, num_classes).
      image_size: side in pixels of the images it is initialised with.
      label_smoothing: mass spread over all classes, the true one included (the authors' code;
        the paper spreads it over the others).
      mixup_alpha: parameter of mixup's Beta distribution; 0 is no mixup.

    Raises:
      InputError: if a number is out of range.
    """

    model: nn.Module
    num_classes: int
    image_size: int
    label_smoothing: float = 0.0
    mixup_alpha: float = 0.0

    best_metric = "eval_top1"

    def __post_init__(self):
        if not 0 <= self.label_smoothing < 1:
            raise InputError(f"label_smoothing must be in [0, 1); got {self.label_smoothing}")
        if self.mixup_alpha < 0:
            raise InputError(f"augment.mixup must not be negative; got {self.mixup_alpha}")

    def init(self, rng: jax.Array) -> dict:
        """Variables of the model."""
        images = jnp.zeros((1, self.image_size, self.image_size, 3))
        return self.model.init(rng, images)

    def loss_fn(self, params, batch_stats, batch, rng, progress) -> tuple[jax.Array, dict]:
        """Mean cross-entropy of a uint8 batch, and the new batch statistics."""
        mixup_rng, dropout_rng = jax.random.split(rng)
        images = normalize(batch["image"])
        targets = jax.nn.one_hot(batch["label"], self.num_classes)
        if self.label_smoothing:
            targets = optax.smooth_labels(targets, self.label_smoothing)
        if self.mixup_alpha:
            images, targets = mixup(mixup_rng, images, targets, self.mixup_alpha)
        logits, updates = self.model.apply(
            {"params": params, "batch_stats": batch_stats},
            images,
            train=True,
            progress=progress,
            mutable=["batch_stats"],
            rngs={"dropout": dropout_rng},
        )
        loss = optax.softmax_cross_entropy(logits, targets).mean()
        return loss, updates["batch_stats"]

    def eval_fn(self, params, batch_stats, batch) -> dict[str, jax.Array]:
        """Sums over the images that the mask keeps: loss, top-1 and top-5 hits, count."""
        variables = {"params": params, "batch_stats": batch_stats}
        logits = self.model.apply(variables, normalize(batch["image"]))
        labels, mask = batch["label"], batch["mask"]
        true_logits = jnp.take_along_axis(logits, labels[:, None], -1)
        # Ties count against the model, so that equal logits score nothing.
        rank = jnp.sum(logits >= true_logits, -1)  # 1 is first; 0 where the logits are NaN
        values = {
            "loss": optax.softmax_cross_entropy_with_integer_labels(logits, labels),
            "top1": rank == 1,
            "top5": (rank >= 1) & (rank <= 5),
            "count": jnp.ones_like(mask),
        }
        return {name: jnp.sum(jnp.where(mask, value, 0)) for name, value in values.items()}
