"""What the region proposal network and the box heads are trained on: sampled boxes and targets."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from resnest_jax.models.detection.boxes import clip, iou, nonempty
from resnest_jax.models.detection.matching import (
    BACKGROUND,
    FOREGROUND,
    Matches,
    Sample,
    match,
    sample,
)


class Objects(NamedTuple):
    """The objects of an image, padded.

    Attributes:
      boxes: (G, 4) float32 in pixels.
      classes: (G,) integers, from 0.
      valid: (G,) bool; padding is left out everywhere.
    """

    boxes: jax.Array
    classes: jax.Array
    valid: jax.Array


class Regions(NamedTuple):
    """The regions of an image that a box head is trained on: foreground, background, padding.

    Attributes:
      boxes: (S, 4) float32 in pixels.
      classes: (S,) int32, of the object, or the number of classes for background.
      objects: (S,) int32, the index of the object.
      targets: (S, 4) float32, the box of the object; without a meaning for background.
      valid: (S,) bool.
    """

    boxes: jax.Array
    classes: jax.Array
    objects: jax.Array
    targets: jax.Array
    valid: jax.Array


def match_boxes(
    boxes: jax.Array, objects: Objects, low: float, high: float, low_quality: bool = False
) -> Matches:
    """Match boxes (N, 4) with objects by overlap (IoU), see ``match``."""

    def overlaps(i: jax.Array) -> jax.Array:
        return iou(objects.boxes[i][None], boxes)[0]

    return match(overlaps, objects.valid, low, high, low_quality)


def sample_anchors(
    anchors: jax.Array,
    objects: Objects,
    *,
    num: int = 256,
    fraction: float = 0.5,
    low: float = 0.3,
    high: float = 0.7,
    key: jax.Array | None = None,
) -> tuple[Sample, jax.Array]:
    """Sample the anchors of an image for the losses of the region proposal network.

    An anchor is foreground from an overlap of ``high`` on or if no other anchor overlaps an object
    more, background below ``low``, and is left out in between. Anchors beyond the image count.

    Args:
      anchors: (A, 4) of all levels.
      objects: of the image.
      num: the length of the sample.
      fraction: of foreground, at most.
      low: overlap (IoU).
      high: overlap (IoU).
      key: of the draw; None takes the first anchors.

    Returns:
      The sample, and the targets (num, 4) of its anchors: the boxes of their objects, without a
      meaning for background.
    """
    index, label = match_boxes(anchors, objects, low, high, low_quality=True)
    drawn = sample(label == FOREGROUND, label == BACKGROUND, num, fraction, key)
    return drawn, objects.boxes[index[drawn.index]]


def match_regions(
    boxes: jax.Array,
    valid: jax.Array,
    objects: Objects,
    size: jax.Array,
    *,
    threshold: float,
    num_classes: int,
) -> Regions:
    """Match regions of an image, clipped to it, with its objects; they have no gradient.

    Args:
      boxes: (R, 4) in pixels; empty ones become padding.
      valid: (R,) bool, which ones are not padding.
      objects: of the image.
      size: (2,), height and width of the image in pixels, without padding.
      threshold: overlap (IoU) from which on a region is foreground.
      num_classes: without the background.
    """
    boxes = clip(lax.stop_gradient(boxes), size)
    return _label(boxes, valid & nonempty(boxes), objects, threshold, num_classes)


def sample_regions(
    proposals: jax.Array,
    valid: jax.Array,
    objects: Objects,
    *,
    num_classes: int,
    num: int = 512,
    fraction: float = 0.25,
    threshold: float = 0.5,
    key: jax.Array | None = None,
) -> Regions:
    """Sample regions of an image for the losses of the heads; they have no gradient.

    The objects' own boxes join the proposals, after them. The foreground comes first.

    Args:
      proposals: (P, 4) in pixels.
      valid: (P,) bool, which proposals are not padding.
      objects: of the image.
      num_classes: without the background.
      num: the length of the sample.
      fraction: of foreground, at most.
      threshold: overlap (IoU) from which on a region is foreground.
      key: of the draw; None takes the first regions.
    """
    boxes = lax.stop_gradient(jnp.concatenate((proposals, objects.boxes)))
    valid = jnp.concatenate((valid, objects.valid))
    regions = _label(boxes, valid, objects, threshold, num_classes)
    foreground = regions.classes < num_classes
    drawn = sample(foreground, valid & ~foreground, num, fraction, key)
    chosen = jax.tree.map(lambda x: x[drawn.index], regions)
    classes = jnp.where(drawn.foreground, chosen.classes, num_classes)
    return chosen._replace(classes=classes, valid=drawn.valid)


def _label(
    boxes: jax.Array, valid: jax.Array, objects: Objects, threshold: float, num_classes: int
) -> Regions:
    """Return regions with the objects that they overlap most."""
    index, label = match_boxes(boxes, objects, threshold, threshold)
    foreground = valid & (label == FOREGROUND)
    classes = jnp.where(foreground, objects.classes[index].astype(jnp.int32), num_classes)
    return Regions(boxes, classes, index, objects.boxes[index], valid)
