"""Areas, overlaps and the coding of boxes."""

import math

import jax
import jax.numpy as jnp

# A decoded box is at most 1000 / 16 times as wide and as high as the box that it starts from.
MAX_LOG_SCALE = math.log(1000 / 16)

Weights = tuple[float, float, float, float]


def areas(boxes: jax.Array) -> jax.Array:
    """Return the areas (...) of boxes (..., 4) in square pixels."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def nonempty(boxes: jax.Array, minimum: float = 0.0) -> jax.Array:
    """Return whether both sides of boxes (..., 4) exceed ``minimum`` pixels, bool (...)."""
    width, height = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]
    return (width > minimum) & (height > minimum)


def clip(boxes: jax.Array, size: jax.Array) -> jax.Array:
    """Clip boxes (..., 4) to an image of ``size`` (2,), height and width in pixels."""
    height, width = size
    limits = jnp.stack((width, height, width, height)).astype(boxes.dtype)
    return jnp.clip(boxes, 0, jnp.broadcast_to(limits, boxes.shape))


def iou(first: jax.Array, second: jax.Array) -> jax.Array:
    """Return intersection over union (N, M) of boxes (N, 4) and (M, 4).

    It is 0 where boxes do not overlap, also if both are empty.
    """
    x0, y0, x1, y1 = first.T[:, :, None]
    u0, v0, u1, v1 = second.T[:, None, :]
    width = jnp.minimum(x1, u1) - jnp.maximum(x0, u0)
    height = jnp.minimum(y1, v1) - jnp.maximum(y0, v0)
    # No product is added as it is: a compiler that rounds once, in some places of a program and not
    # in others, would break ties. abs changes nothing, as boxes that overlap have positive sides.
    shared = jnp.where((width > 0) & (height > 0), width * height, 0)
    union = jnp.abs(areas(first))[:, None] + jnp.abs(areas(second))[None] - shared
    return jnp.where(shared > 0, shared / jnp.where(shared > 0, union, 1), 0)


def encode(boxes: jax.Array, targets: jax.Array, weights: Weights) -> jax.Array:
    """Return the deltas (..., 4) that ``decode`` turns into ``targets``.

    Args:
      boxes: (..., 4), not empty.
      targets: (..., 4), not empty.
      weights: factors of dx, dy, dw and dh.

    Returns:
      dx, dy: the distance of the centres in units of the box's sides; dw, dh: the logarithm of
      the ratio of the sides. For an empty box they are not finite.
    """
    x, y, width, height = _centres_and_sides(boxes)
    target_x, target_y, target_width, target_height = _centres_and_sides(targets)
    wx, wy, ww, wh = weights
    deltas = (
        wx * (target_x - x) / width,
        wy * (target_y - y) / height,
        ww * jnp.log(target_width / width),
        wh * jnp.log(target_height / height),
    )
    return jnp.stack(deltas, -1)


def decode(boxes: jax.Array, deltas: jax.Array, weights: Weights) -> jax.Array:
    """Apply deltas (..., 4) to boxes (..., 4), of as many axes; the inverse of ``encode``.

    The logarithms of the scales are cut at ``MAX_LOG_SCALE`` from above.
    """
    x, y, width, height = _centres_and_sides(boxes)
    wx, wy, ww, wh = weights
    deltas = deltas.astype(jnp.promote_types(deltas.dtype, boxes.dtype))
    x = x + deltas[..., 0] / wx * width
    y = y + deltas[..., 1] / wy * height
    half_width = 0.5 * width * jnp.exp(jnp.minimum(deltas[..., 2] / ww, MAX_LOG_SCALE))
    half_height = 0.5 * height * jnp.exp(jnp.minimum(deltas[..., 3] / wh, MAX_LOG_SCALE))
    return jnp.stack((x - half_width, y - half_height, x + half_width, y + half_height), -1)


def _centres_and_sides(boxes: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Return x and y of the centres, widths and heights (...) of boxes (..., 4)."""
    width, height = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]
    return boxes[..., 0] + 0.5 * width, boxes[..., 1] + 0.5 * height, width, height
