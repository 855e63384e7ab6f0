"""From the outputs of the region proposal network to proposals."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from resnest_jax.models.detection.boxes import Weights, clip, decode, nonempty
from resnest_jax.models.detection.nms import nms

WEIGHTS: Weights = (1.0, 1.0, 1.0, 1.0)  # of the coder of anchors


class Proposals(NamedTuple):
    """Proposals of an image, best first.

    Attributes:
      boxes: (P, 4) float32 in pixels.
      scores: (P,), logits.
      valid: (P,) bool; padding comes last, and its boxes and scores are 0.
    """

    boxes: jax.Array
    scores: jax.Array
    valid: jax.Array


def select_proposals(
    logits: Sequence[jax.Array],
    deltas: Sequence[jax.Array],
    anchors: Sequence[jax.Array],
    size: jax.Array,
    *,
    num_before: int,
    num: int,
    threshold: float = 0.7,
    minimum: float = 0.0,
) -> Proposals:
    """Select the proposals of an image; they have no gradient.

    Each level gives its ``num_before`` highest logits. Their anchors are decoded and clipped to the
    image. What is not finite or not longer than ``minimum`` is dropped, then what overlaps better
    boxes of its level. The best ``num`` over all levels are the result.

    Args:
      logits: of each level, (A,) with its number of anchors.
      deltas: of each level, (A, 4).
      anchors: of each level, (A, 4).
      size: (2,), height and width of the image in pixels, without padding.
      num_before: boxes per level before the suppression.
      num: boxes after it, the length of the result.
      threshold: overlap of the suppression.
      minimum: of both sides, in pixels.
    """
    levels = [_best(*level, num_before) for level in zip(logits, deltas, anchors, strict=True)]
    scores, boxes = (jnp.concatenate(parts) for parts in zip(*levels, strict=True))
    finite = jnp.isfinite(scores) & jnp.all(jnp.isfinite(boxes), -1)
    boxes = clip(boxes, size)
    level = np.repeat(np.arange(len(levels)), [len(part) for part, _ in levels])
    valid = finite & nonempty(boxes, minimum)
    index, valid = nms(boxes, scores, threshold, num, classes=jnp.asarray(level), valid=valid)
    boxes, scores = jnp.where(valid[:, None], boxes[index], 0), jnp.where(valid, scores[index], 0)
    return Proposals(boxes, scores, valid)


def _best(
    logits: jax.Array, deltas: jax.Array, anchors: jax.Array, num: int
) -> tuple[jax.Array, jax.Array]:
    """Return the highest logits (K,) of a level, K <= num, and their boxes (K, 4)."""
    logits, deltas = lax.stop_gradient(logits), lax.stop_gradient(deltas)
    # NaN takes a place, as in the authors' sort, and is dropped later.
    order = jnp.where(jnp.isnan(logits), jnp.inf, logits)
    index = lax.top_k(order, min(num, len(logits)))[1]
    return logits[index], decode(anchors[index], deltas[index], WEIGHTS)
