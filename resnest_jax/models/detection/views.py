"""Several views of an image, resized and maybe mirrored: from their detections to the image's.

As the authors' test-time augmentation, detectron2's ``GeneralizedRCNNWithTTA``.
"""

import jax
import jax.numpy as jnp

from resnest_jax.models.detection.detections import Detections, rescale, suppress

LEAST_SCORE = 1e-8  # of a detection of the image, not included


def mirror(image: jax.Array, size: jax.Array) -> jax.Array:
    """Mirror an image (H, W, C) of ``size`` (2,) left to right; its padding stays on the right."""
    return jnp.roll(image[:, ::-1], size[1], axis=1)


def mirror_boxes(boxes: jax.Array, size: jax.Array) -> jax.Array:
    """Return boxes (D, 4) in the mirrored image of ``size`` (2,), height and width."""
    x0, y0, x1, y1 = boxes.T
    return jnp.stack((size[1] - x1, y0, size[1] - x0, y1), -1)


def to_image(
    found: Detections, size: jax.Array, image_size: jax.Array, mirrored: jax.Array | bool
) -> Detections:
    """Move the detections in a view to its image; those that are empty there are not valid.

    Args:
      found: in pixels of the view.
      size, image_size: (2,), heights and widths of view and image.
      mirrored: bool (), whether the view is.
    """
    boxes, valid = rescale(found.boxes, found.valid, size, image_size)
    boxes = jnp.where(mirrored, mirror_boxes(boxes, image_size), boxes)
    return found._replace(boxes=boxes, valid=valid)


def to_view(
    boxes: jax.Array, image_size: jax.Array, size: jax.Array, mirrored: jax.Array | bool
) -> jax.Array:
    """Move boxes (D, 4) of an image to a view of it, see ``to_image``."""
    y, x = size / jnp.maximum(image_size, 1)  # padding of a batch has no size, and NaN no tiles
    boxes = boxes * jnp.stack((x, y, x, y))[None]
    return jnp.where(mirrored, mirror_boxes(boxes, size), boxes)


def unite(found: Detections, num: int, threshold: float) -> Detections:
    """Return the best of the detections in all views of an image, moved to it, see ``suppress``."""
    candidates = found._replace(valid=found.valid & (found.scores > LEAST_SCORE))
    return suppress(candidates, num, threshold)[0]
