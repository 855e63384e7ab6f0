"""RoIAlign, by the authors' results and by plain loops over samples."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from detection_golden import OPS, OPTIONS

from resnest_jax.models.detection.roi_align import TILE, assign_levels, roi_align

STRIDES = (4, 8, 16, 32)
BOXES = [OPS["roi/boxes0"], OPS["roi/boxes1"]]


def features():
    """Return the goldens' levels p2 to p5, (2, H, W, C) each."""
    random = np.random.RandomState(OPTIONS["roi"]["feature_seed"])
    height, width = OPTIONS["roi"]["image"]
    shapes = [(2, height // s, width // s, OPTIONS["roi"]["channels"]) for s in STRIDES]
    return [random.standard_normal(shape).astype(np.float32) for shape in shapes]


@partial(jax.jit, static_argnums=(1, 2))
def pooled(maps, size, samples=None):
    """Pool the goldens' boxes: those of the first image, then those of the second."""
    padded = np.zeros((2, len(BOXES[0]), 4), np.float32)
    padded[0], padded[1, : len(BOXES[1])] = BOXES

    def of_image(maps, boxes):
        return roi_align(maps, STRIDES, boxes, assign_levels(boxes), size, samples)

    first, second = jax.vmap(of_image)(maps, jnp.asarray(padded))
    return jnp.concatenate((first, second[: len(BOXES[1])]))


def test_levels():
    np.testing.assert_array_equal(assign_levels(OPS["level/boxes"]), OPS["level/out"])
    np.testing.assert_array_equal(assign_levels(np.concatenate(BOXES)), OPS["roi/levels"])


@pytest.mark.parametrize(
    ("name", "size", "samples"), [("pool7", 7, None), ("pool14", 14, None), ("ratio2", 7, 2)]
)
def test_goldens(name, size, samples):
    found, expected = pooled(features(), size, samples), OPS[f"roi/{name}"]
    np.testing.assert_allclose(found[..., : expected.shape[-1]], expected, rtol=0, atol=5e-5)


def test_one_level():
    maps = [level[0, :, :, :1] for level in features()]
    which = np.arange(4).repeat(len(BOXES[0]))
    boxes = np.tile(BOXES[0], (4, 1))
    found = jax.jit(roi_align, static_argnums=(1, 4))(maps, STRIDES, boxes, which, 7)
    expected = np.concatenate([OPS[f"roi/single7_p{level}"] for level in (2, 3, 4, 5)])
    np.testing.assert_allclose(found, expected, rtol=0, atol=5e-5)


def test_gradient():
    found = jax.grad(lambda maps: jnp.sum(pooled(maps, 7) ** 2))(features())
    found = [np.asarray(level) for level in found]
    found[0] = found[0][:, ::3, ::3]
    for level, gradient in zip((2, 3, 4, 5), found, strict=True):
        expected = OPS[f"roi/grad_p{level}"]
        limit = 5e-6 * max(np.abs(expected).max(), 1)
        np.testing.assert_allclose(gradient, expected, rtol=0, atol=limit)


def bilinear(level, y, x):
    """Return the value at a point, in pixels between centres."""
    height, width = level.shape[:2]
    if not (-1 <= y <= height and -1 <= x <= width):
        return 0
    y, x = np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)
    value = 0
    for i in range(math.floor(y), min(math.floor(y) + 2, height)):
        for j in range(math.floor(x), min(math.floor(x) + 2, width)):
            value += (1 - abs(y - i)) * (1 - abs(x - j)) * level[i, j]
    return value


def plain(level, stride, box, size):
    x0, y0, x1, y1 = (float(side) / stride - 0.5 for side in box)
    height, width = (y1 - y0) / size, (x1 - x0) / size
    rows, columns = max(math.ceil(height), 0), max(math.ceil(width), 0)
    result = np.zeros((size, size, level.shape[-1]))
    for p, q, i, j in np.ndindex(size, size, rows, columns):
        y, x = y0 + (p + (i + 0.5) / rows) * height, x0 + (q + (j + 0.5) / columns) * width
        result[p, q] += bilinear(level, y, x) / (rows * columns)
    return result


LONG = (3, 5 * TILE + 3, 2)  # more than the tiles of one round, in all


def long_regions():
    """Return a level and boxes of all lengths: outside, empty, upside down, over the whole map."""
    random = np.random.default_rng(0)
    level = random.standard_normal(LONG).astype(np.float32)
    corner = random.uniform((-20, -10), (4 * LONG[1], 4 * LONG[0]), (16, 2))
    side = random.uniform((-20, -4), (300, 20), (16, 2))
    boxes = np.concatenate((corner, corner + side), -1)
    boxes[:3] = [0, 0, 4 * LONG[1], 4], [-9e3, -9e3, 9e3, 9e3], [8, 8, 8, 8]
    return level, boxes.astype(np.float32)


@jax.jit
def pool_long(level, boxes):
    return roi_align([level], (4,), boxes, np.zeros(16, int), 2)


def test_long_regions():
    level, boxes = long_regions()
    found = pool_long(level, boxes)
    for i in (0, *range(2, 16)):
        np.testing.assert_allclose(found[i], plain(level, 4, boxes[i], 2), rtol=0, atol=2e-5)
    # So large that no sample but one in hundreds lies inside.
    assert abs(found[1]).max() < 0.1


def test_both_derivatives():
    """The pooled features are linear in the features, and the boxes have no gradient."""
    level, boxes = long_regions()

    @jax.jit
    def derivatives(level, boxes, weights):
        pool = partial(roi_align, strides=(4,), levels=np.zeros(16, int), size=2)
        bins, pullback = jax.vjp(lambda level, boxes: pool([level], boxes=boxes), level, boxes)
        forward = jax.jvp(lambda level: pool([level], boxes=boxes), (level,), (level,))[1]
        return bins, forward, *pullback(weights)

    weights = np.random.default_rng(1).standard_normal((16, 2, 2, 2)).astype(np.float32)
    bins, forward, gradient, of_boxes = derivatives(level, boxes, weights)
    np.testing.assert_array_equal(forward, bins)
    np.testing.assert_allclose(np.sum(gradient * level), np.sum(bins * weights), rtol=1e-4)
    assert not of_boxes.any()


def test_half_precision():
    level, boxes = long_regions()
    half = level.astype(jnp.bfloat16)
    found = pool_long(half, boxes)
    assert found.dtype == jnp.bfloat16
    exact = pool_long(half.astype(np.float32), boxes)
    np.testing.assert_array_equal(found, exact.astype(jnp.bfloat16))
