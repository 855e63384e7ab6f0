"""Which object a box belongs to, and which boxes a loss looks at."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

FOREGROUND, BACKGROUND, IGNORED = 1, 0, -1


class Matches(NamedTuple):
    """The object that each of N boxes belongs to.

    Attributes:
      index: (N,) int32, the valid object of the largest overlap, the first of equal ones.
      label: (N,) int32, FOREGROUND, BACKGROUND or IGNORED.
    """

    index: jax.Array
    label: jax.Array


def match(
    quality: Callable[[jax.Array], jax.Array],
    valid: jax.Array,
    low: float,
    high: float,
    low_quality: bool = False,
) -> Matches:
    """Match N boxes with G objects.

    Args:
      quality: from the index of an object to its overlaps (N,) with the boxes, >= 0. It is called
        in a loop that ends at the last valid object, so that padding costs nothing.
      valid: (G,) bool, which objects are not padding.
      low: below it a box is background.
      high: from it on a box is foreground; it is ignored in between.
      low_quality: whether all boxes that tie for the highest overlap with an object are foreground
        too. They keep the index of the object that they overlap most. For an object that overlaps
        no box these are all boxes without an overlap with it.

    Returns:
      Matches; without a valid object all boxes are background and have index 0.
    """

    def body(i: jax.Array, state: tuple) -> tuple:
        best, index, ties = state
        overlaps = quality(i)
        ties |= valid[i] & (overlaps == jnp.max(overlaps))
        better = valid[i] & (overlaps > best)
        return jnp.where(better, overlaps, best), jnp.where(better, i, index), ties

    overlaps = jax.eval_shape(quality, jnp.int32(0))
    start = (
        jnp.full(overlaps.shape, -1, overlaps.dtype),
        jnp.zeros(overlaps.shape, jnp.int32),
        jnp.zeros(overlaps.shape, bool),
    )
    count = jnp.max(jnp.where(valid, jnp.arange(1, len(valid) + 1, dtype=jnp.int32), 0))
    best, index, ties = lax.fori_loop(jnp.int32(0), count, body, start)
    label = jnp.where(best < low, BACKGROUND, IGNORED)
    label = jnp.where(best >= high, FOREGROUND, label)
    return Matches(index, jnp.where(ties, FOREGROUND, label) if low_quality else label)


class Sample(NamedTuple):
    """Some of N boxes: first the foreground, then the background, then padding.

    Attributes:
      index: (num,) int32, which boxes; 0 where it is not valid.
      foreground: (num,) bool.
      valid: (num,) bool.
    """

    index: jax.Array
    foreground: jax.Array
    valid: jax.Array


def sample(
    foreground: jax.Array,
    background: jax.Array,
    num: int,
    fraction: float,
    key: jax.Array | None = None,
) -> Sample:
    """Draw at most ``num`` of N boxes, of which at most ``int(num * fraction)`` are foreground.

    Args:
      foreground: (N,) bool; boxes that are in neither are left out.
      background: (N,) bool; they fill up what the foreground leaves.
      num: the length of the sample.
      fraction: of foreground, 0 to 1.
      key: of the draw, without replacement; None takes the first boxes of either kind.
    """
    size = len(foreground)
    priority = jnp.zeros(size) if key is None else jax.random.uniform(key, (size,))

    def first(which: jax.Array, most: int) -> tuple[jax.Array, jax.Array]:
        """Return the indices (num,) of the boxes of highest priority, and how many there are."""
        # Of equal priorities, the lower index comes first.
        index = lax.top_k(jnp.where(which, priority, -1), min(num, size))[1]
        index = jnp.pad(index, (0, num - len(index)))
        return index, jnp.minimum(jnp.sum(which), most)

    positives, num_positives = first(foreground, int(num * fraction))
    negatives, num_negatives = first(background, num)
    place = jnp.arange(num)
    is_positive = place < num_positives
    valid = place < num_positives + num_negatives
    index = jnp.where(is_positive, positives, negatives[(place - num_positives) % num])
    return Sample(jnp.where(valid, index, 0), is_positive, valid)
