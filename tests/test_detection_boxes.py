"""Anchors, box coding and overlaps, by the authors' results and plain loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from detection_golden import OPS, ops

from resnest_jax.models.detection import anchors, boxes

WEIGHTS = [(1, 1, 1, 1), (10, 10, 5, 5), (20, 20, 10, 10), (30, 30, 15, 15)]


def pyramid(height, width):
    """Return the shapes of p2 to p6 for an image."""
    shapes = [(height // 4, width // 4)]
    for _ in range(4):
        shapes.append(tuple(-(-side // 2) for side in shapes[-1]))
    return shapes


@pytest.mark.parametrize("size", [(64, 96), (800, 1344)])
def test_anchors(size):
    found = anchors.pyramid_anchors(pyramid(*size))
    stored = ops("anchors/{}x{}".format(*size))
    for name, level in zip(("p2", "p3", "p4", "p5", "p6"), found, strict=True):
        level = np.asarray(level)
        if name in stored:
            np.testing.assert_array_equal(level, stored[name])
        else:
            assert len(level) == stored[f"{name}_count"]
            np.testing.assert_array_equal(level[:6], stored[f"{name}_first"])
            np.testing.assert_array_equal(level[-6:], stored[f"{name}_last"])


@pytest.mark.parametrize("case", range(4))
def test_coder(case):
    weights, stored = WEIGHTS[case], ops("coder")
    source, target = stored["src"], stored["tgt"]
    deltas = boxes.encode(source, target, weights)
    expected = stored[f"encode{case}"]
    np.testing.assert_allclose(deltas, expected, rtol=0, atol=1e-5 * max(weights))
    np.testing.assert_allclose(boxes.decode(source, deltas, weights), target, rtol=0, atol=1e-3)
    groups = stored["delta"].reshape(-1, 3, 4)
    decoded = np.asarray(boxes.decode(source[:, None], groups, weights)).reshape(-1, 12)
    np.testing.assert_allclose(decoded, stored[f"decode{case}"], rtol=1e-6, atol=1e-3)


def test_clip_and_nonempty():
    stored = ops("clip")
    clipped = jax.jit(boxes.clip)(stored["boxes"], jnp.array([120, 160]))
    np.testing.assert_array_equal(clipped, stored["out"])
    for minimum in (0, 4):
        found = boxes.nonempty(clipped, minimum)
        np.testing.assert_array_equal(found, stored[f"nonempty{minimum}"])


def test_iou():
    found = jax.jit(boxes.iou)(OPS["iou/gt"], OPS["iou/boxes"])
    np.testing.assert_allclose(found, OPS["iou/out"], rtol=0, atol=1e-7)


def test_iou_counts_pixels():
    """Boxes of whole pixels against masks; a third of them are empty."""
    random = np.random.default_rng(0)
    corners = random.integers(0, 12, (2, 24, 4))
    corners[..., 2:] = corners[..., :2] + np.maximum(random.integers(-3, 8, (2, 24, 2)), 0)
    masks = np.zeros((2, 24, 20, 20), bool)
    for group, index in np.ndindex(2, 24):
        x0, y0, x1, y1 = corners[group, index]
        masks[group, index, y0:y1, x0:x1] = True
    first, second = masks[0][:, None], masks[1][None]
    shared, union = (first & second).sum((2, 3)), (first | second).sum((2, 3))
    found = boxes.iou(*jnp.asarray(corners, jnp.float32))
    np.testing.assert_allclose(found, shared / np.maximum(union, 1), rtol=1e-6)
