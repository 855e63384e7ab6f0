"""From the outputs of a box head to detections."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from resnest_jax.models.detection.boxes import clip, nonempty
from resnest_jax.models.detection.nms import nms


class Detections(NamedTuple):
    """Detections of an image, best first.

    Attributes:
      boxes: (D, 4) float32 in pixels.
      scores: (D,) float32, probabilities.
      classes: (D,) int32, from 0.
      valid: (D,) bool; padding comes last and is 0.
    """

    boxes: jax.Array
    scores: jax.Array
    classes: jax.Array
    valid: jax.Array


class Instances(NamedTuple):
    """Detections of an image with masks, best first.

    Attributes:
      boxes, scores, classes, valid: see ``Detections``.
      masks: (D, P, P) float32, probabilities in the P x P cells of each box; padding is 0.
    """

    boxes: jax.Array
    scores: jax.Array
    classes: jax.Array
    valid: jax.Array
    masks: jax.Array


def select_detections(
    boxes: jax.Array,
    probabilities: jax.Array,
    valid: jax.Array,
    size: jax.Array,
    *,
    num: int,
    score_threshold: float = 0.05,
    threshold: float = 0.5,
) -> tuple[Detections, jax.Array]:
    """Select the detections of an image; they have no gradient.

    Every pair of a region and a class whose probability exceeds ``score_threshold`` is a candidate.
    Those that overlap better ones of their class are dropped; the best ``num`` are the result.

    Args:
      boxes: (R, K, 4) of each region and class in pixels, or (R, 1, 4) for all classes alike.
      probabilities: (R, K + 1), the background last.
      valid: (R,) bool, which regions are not padding.
      size: (2,), height and width of the image in pixels, without padding.
      num: the length of the result.
      score_threshold: a lower limit of the probability, not included.
      threshold: overlap of the suppression within a class.

    Returns:
      The detections, and the index of the region that each comes from, (num,) int32. Regions with
      values that are not finite are dropped.
    """
    boxes, probabilities = (jax.lax.stop_gradient(x) for x in (boxes, probabilities))
    regions, num_classes = len(boxes), probabilities.shape[1] - 1
    finite = jnp.all(jnp.isfinite(boxes), (1, 2)) & jnp.all(jnp.isfinite(probabilities), 1)
    scores = probabilities[:, :-1]
    candidates = (valid & finite)[:, None] & (scores > score_threshold)
    boxes = jnp.broadcast_to(clip(boxes, size), (regions, num_classes, 4)).reshape(-1, 4)
    scores = scores.ravel()
    rows, classes = jnp.divmod(jnp.arange(regions * num_classes, dtype=jnp.int32), num_classes)
    best, index = suppress(Detections(boxes, scores, classes, candidates.ravel()), num, threshold)
    return best, jnp.where(best.valid, rows[index], 0)


def suppress(candidates: Detections, num: int, threshold: float) -> tuple[Detections, jax.Array]:
    """Return the best ``num`` of the candidates, and the index of each, (num,) int32.

    Those are dropped whose overlap with a better one of their class exceeds ``threshold``.
    """
    boxes, scores, classes, valid = candidates
    index, found = nms(boxes, scores, threshold, num, classes=classes, valid=valid)
    boxes = jnp.where(found[:, None], boxes[index], 0)
    scores, classes = (jnp.where(found, x[index], 0) for x in (scores, classes))
    return Detections(boxes, scores, classes, found), index


def rescale(
    boxes: jax.Array, valid: jax.Array, size: jax.Array, new_size: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Move boxes (D, 4) from an image of ``size`` to the same image of another size.

    Both sizes are (2,), height and width. Returns the boxes, clipped, and which are valid, bool
    (D,): boxes that are empty then are not.
    """
    (height, width), (new_height, new_width) = size, new_size
    y, x = jnp.float32(new_height / height), jnp.float32(new_width / width)
    boxes = clip(boxes * jnp.stack((x, y, x, y))[None], new_size)
    return boxes, valid & nonempty(boxes)
