"""Cross-entropy of labelled pixels."""

import jax
import jax.numpy as jnp
import optax

from resnest_jax.data.label_tables import IGNORED


def pixel_cross_entropy(
    logits: jax.Array, labels: jax.Array, class_weights: tuple[float, ...] = ()
) -> jax.Array:
    """Return the mean cross-entropy over all labelled pixels of the batch, a scalar.

    Not the mean of the images' means, as in the authors' code. It is 0 if no pixel is labelled.

    Args:
      logits: (B, H, W, C) float32.
      labels: (B, H, W) integers; pixels of ``IGNORED`` do not count.
      class_weights: weight of the pixels of each class, C of them or none; the mean is weighted.
    """
    labelled = labels != IGNORED
    classes = jnp.where(labelled, labels, 0).astype(jnp.int32)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, classes)
    weights = labelled.astype(logits.dtype)
    if class_weights:
        weights = weights * jnp.asarray(class_weights, logits.dtype)[classes]
    total = jnp.sum(weights)
    return jnp.sum(losses * weights) / jnp.where(total > 0, total, 1)
