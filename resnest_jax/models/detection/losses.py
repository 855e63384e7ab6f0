"""Losses of the region proposal network and of the heads, in float32 at least."""

import jax
import jax.numpy as jnp

from resnest_jax.models.detection.boxes import Weights, encode
from resnest_jax.models.detection.matching import Sample
from resnest_jax.models.detection.proposals import WEIGHTS as ANCHOR_WEIGHTS


def smooth_l1(difference: jax.Array, beta: float = 0.0) -> jax.Array:
    """Return ``|x|``, less ``beta / 2``, and below beta the parabola ``x**2 / (2 * beta)``."""
    size = jnp.abs(difference)
    if beta == 0:
        return size
    return jnp.where(size < beta, 0.5 * size**2 / beta, size - 0.5 * beta)


def rpn_losses(
    logits: jax.Array,
    deltas: jax.Array,
    anchors: jax.Array,
    sample: Sample,
    targets: jax.Array,
    *,
    num: int,
    beta: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """Return the losses of objectness and of boxes for an image, scalars.

    The sums over the sampled anchors, and of boxes over the foreground among them, are divided by
    ``num``, not by the anchors found. The losses of a batch are the means over its images.

    Args:
      logits: (A,) of all levels.
      deltas: (A, 4).
      anchors: (A, 4).
      sample: S of the anchors, see ``targets.sample_anchors``.
      targets: (S, 4), the boxes of their objects.
      num: anchors to be sampled per image.
      beta: see ``smooth_l1``.
    """
    logits, deltas = _wide(logits[sample.index]), deltas[sample.index]
    entropy = jax.nn.softplus(logits) - jnp.where(sample.foreground, logits, 0)
    wanted = encode(anchors[sample.index], targets, ANCHOR_WEIGHTS)
    objectness = jnp.sum(jnp.where(sample.valid, entropy, 0)) / num
    return objectness, _distance(deltas, wanted, sample.foreground, beta) / num


def box_losses(
    logits: jax.Array,
    deltas: jax.Array,
    boxes: jax.Array,
    classes: jax.Array,
    targets: jax.Array,
    valid: jax.Array,
    *,
    weights: Weights,
    beta: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """Return the losses of classes and of boxes over the regions of a batch, scalars.

    The cross-entropy is the mean over the valid regions. Box deltas count for the foreground, those
    of the true class; their sum is divided by the number of all valid regions.

    Args:
      logits: (R, K + 1), the background last.
      deltas: (R, K, 4), or (R, 1, 4) for all classes alike.
      boxes: (R, 4), the regions.
      classes: (R,) integers, K for background.
      targets: (R, 4), the boxes of the regions' objects.
      valid: (R,) bool; padding counts nowhere.
      weights: of the coder.
      beta: see ``smooth_l1``.
    """
    count = jnp.maximum(jnp.sum(valid), 1)
    own = jnp.take_along_axis(jax.nn.log_softmax(_wide(logits)), classes[:, None], 1)[:, 0]
    group = jnp.minimum(classes, deltas.shape[1] - 1)
    deltas = jnp.take_along_axis(deltas, group[:, None, None], 1)[:, 0]
    foreground = valid & (classes < logits.shape[1] - 1)
    wanted = encode(boxes, targets, weights)
    entropy = -jnp.sum(jnp.where(valid, own, 0))
    return entropy / count, _distance(deltas, wanted, foreground, beta) / count


def mask_loss(logits: jax.Array, targets: jax.Array, valid: jax.Array) -> jax.Array:
    """Return the mean binary cross-entropy over the pixels of masks, a scalar; 0 without any.

    Args:
      logits: (R, P, P), of the masks of the true classes.
      targets: (R, P, P) bool.
      valid: (R,) bool, which regions are foreground; the others count nowhere.
    """
    logits = _wide(logits)
    entropy = jax.nn.softplus(logits) - jnp.where(targets, logits, 0)
    each = jnp.mean(entropy, (1, 2))
    return jnp.sum(jnp.where(valid, each, 0)) / jnp.maximum(jnp.sum(valid), 1)


def _wide(logits: jax.Array) -> jax.Array:
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))


def _distance(deltas: jax.Array, wanted: jax.Array, which: jax.Array, beta: float) -> jax.Array:
    """Return the sum over some rows of (N, 4)."""
    # The others are left out before the distance: theirs may have no finite gradient.
    difference = jnp.where(which[:, None], deltas - wanted, 0)
    return jnp.sum(smooth_l1(difference, beta))
