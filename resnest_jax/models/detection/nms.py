"""Non-maximum suppression."""

import jax
import jax.numpy as jnp
from jax import lax

from resnest_jax.models.detection.boxes import iou

BLOCK = 256


def nms(
    boxes: jax.Array,
    scores: jax.Array,
    threshold: float,
    num: int,
    *,
    classes: jax.Array | None = None,
    valid: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Return the first ``num`` boxes that greedy non-maximum suppression keeps, best score first.

    A box is kept unless its overlap with a kept box before it, of the same class, is larger than
    the threshold. Of equal scores, the lower index is first. As in torchvision, but classes are
    compared; shifting their boxes apart would lose precision.

    The boxes are taken in order, ``BLOCK`` at a time, until ``num`` are kept or none is left. Each
    block is compared with the boxes kept so far and with itself.

    Args:
      boxes: (N, 4).
      scores: (N,), finite where valid.
      threshold: overlap (IoU), 0 to 1.
      num: the length of the result.
      classes: (N,) integers; None is one class.
      valid: (N,) bool, which boxes there are; None is all.

    Returns:
      Their indices (num,) int32, 0 where there are no more, and which are valid, bool (num,).
    """
    size = len(boxes)
    valid = jnp.ones(size, bool) if valid is None else valid
    classes = jnp.zeros(size, jnp.int32) if classes is None else classes
    order = jnp.argsort(jnp.where(valid, -scores, jnp.inf)).astype(jnp.int32)  # stable
    order = jnp.pad(order, (0, -size % BLOCK))
    total = jnp.sum(valid)

    def overlapping(first: jax.Array, second: jax.Array) -> jax.Array:
        same = classes[first][:, None] == classes[second][None]
        return same & (iou(boxes[first], boxes[second]) > threshold)

    def more(state: tuple) -> jax.Array:
        start, found, _ = state
        return (start < total) & (found < num)

    def body(state: tuple) -> tuple:
        start, found, kept = state
        block = lax.dynamic_slice(order, (start,), (BLOCK,))
        suppressed = overlapping(kept, block) & (jnp.arange(num) < found)[:, None]
        alive = (start + jnp.arange(BLOCK) < total) & ~jnp.any(suppressed, 0)
        keep = _greedy(overlapping(block, block), alive)
        place = jnp.where(keep, found + jnp.cumsum(keep) - 1, num)
        kept = kept.at[place].set(block, mode="drop")
        return start + BLOCK, jnp.minimum(found + jnp.sum(keep, dtype=jnp.int32), num), kept

    state = (jnp.int32(0), jnp.int32(0), jnp.zeros(num, jnp.int32))
    _, found, kept = lax.while_loop(more, body, state)
    return kept, jnp.arange(num) < found


def _greedy(overlapping: jax.Array, alive: jax.Array) -> jax.Array:
    """Return which of n boxes in order are kept, from bools (n, n) and (n,).

    The fixed point of "alive, and no kept box before it overlaps". Every round makes at least one
    more box final, the first one that was not; usually a few rounds do.
    """
    before = overlapping & jnp.triu(jnp.ones_like(overlapping), 1)

    def body(state: tuple) -> tuple:
        keep, _ = state
        return alive & ~jnp.any(before & keep[:, None], 0), keep

    start = (alive, ~alive)
    return lax.while_loop(lambda state: jnp.any(state[0] != state[1]), body, start)[0]
