"""Sampled targets and losses, by the authors' results and plain loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from detection_golden import OPS

from resnest_jax.models.detection import losses
from resnest_jax.models.detection.anchors import anchors
from resnest_jax.models.detection.boxes import iou
from resnest_jax.models.detection.targets import Objects, sample_anchors, sample_regions

PADDING = [0, 0, 0, 0]
# Two images of 64 x 64 pixels; the second has no object.
BOXES = np.array(
    [[[4, 4, 36, 30], PADDING, [30, 20, 62, 60], PADDING], [PADDING] * 4],
    np.float32,
)
VALID = BOXES.any(-1)
CLASSES = np.array([[2, 0, 1, 0], [0] * 4])
OBJECTS = Objects(BOXES, CLASSES, VALID)
ANCHORS = np.asarray(anchors((8, 8), 8, 32))


@pytest.mark.parametrize("beta", [0, 0.1, 1])
def test_smooth_l1(beta):
    found = losses.smooth_l1(OPS["loss/x"] - OPS["loss/y"], beta)
    np.testing.assert_allclose(found, OPS[f"loss/smooth_l1_{beta}"], rtol=1e-6, atol=1e-7)


def coded(boxes, targets, weights):
    """Return the deltas of the goldens' coder in NumPy, of boxes (N, 4)."""
    side, target_side = boxes[:, 2:] - boxes[:, :2], targets[:, 2:] - targets[:, :2]
    shift = (targets[:, :2] + target_side / 2 - boxes[:, :2] - side / 2) / side
    return np.concatenate((shift, np.log(target_side / side)), -1) * weights


def test_rpn_losses():
    """Losses of a batch and their gradients; an image without objects has background only."""
    random = np.random.default_rng(0)
    logits = random.normal(size=(2, len(ANCHORS))).astype(np.float32)
    deltas = random.normal(size=(2, len(ANCHORS), 4)).astype(np.float32)

    @jax.jit
    @jax.vmap
    def found(logits, deltas, objects):
        def loss(logits, deltas):
            boxes = jnp.asarray(ANCHORS)
            drawn, targets = sample_anchors(boxes, objects, num=40)
            each = losses.rpn_losses(logits, deltas, boxes, drawn, targets, num=32)
            return sum(each), each

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(logits, deltas)

    ((_, (objectness, of_boxes)), gradients) = found(logits, deltas, OBJECTS)
    quality = np.asarray(iou(jnp.asarray(BOXES[0][VALID[0]]), jnp.asarray(ANCHORS)))
    foreground = (quality >= 0.7).any(0) | (quality == quality.max(1, keepdims=True)).any(0)
    background = (quality < 0.3).all(0) & ~foreground
    assert 2 <= foreground.sum() < 20
    assert background.sum() >= 40
    positives = np.flatnonzero(foreground)
    for i, chosen in enumerate((positives, positives[:0])):
        rest = np.flatnonzero(background if i == 0 else np.ones_like(background))
        rest = rest[: 40 - len(chosen)]
        chances = 1 / (1 + np.exp(-logits[i].astype(np.float64)))
        expected = -np.log(chances[chosen]).sum() - np.log(1 - chances[rest]).sum()
        np.testing.assert_allclose(objectness[i], expected / 32, rtol=1e-5)
        used = np.zeros(len(ANCHORS), bool)
        used[chosen] = used[rest] = True
        np.testing.assert_array_equal(gradients[0][i] != 0, used)
        assert np.isfinite(gradients[1][i]).all()
    targets = BOXES[0][VALID[0]][quality.argmax(0)][positives]
    difference = deltas[0][positives] - coded(ANCHORS[positives], targets, [1, 1, 1, 1])
    np.testing.assert_allclose(of_boxes[0], np.abs(difference).sum() / 32, rtol=1e-5)
    np.testing.assert_allclose(gradients[1][0][positives], np.sign(difference) / 32, rtol=1e-6)
    assert of_boxes[1] == 0
    assert not gradients[1][1].any()


PROPOSALS = np.array(
    [[5, 5, 34, 30], [30, 22, 60, 60], [0, 0, 64, 64], [40, 2, 60, 12], PADDING], np.float32
)


def regions(key=None, **limits):
    """Sample the same proposals for both images."""

    @jax.jit
    @jax.vmap
    def sampled(objects):
        valid = PROPOSALS.any(-1)
        return sample_regions(PROPOSALS, valid, objects, num_classes=3, key=key, **limits)

    return sampled(OBJECTS)


def test_regions():
    """Foreground is sampled before background; objects' boxes come last; padding never comes."""
    found = regions(num=10, fraction=0.5)
    objects = BOXES[0][VALID[0]]
    foreground = np.concatenate((PROPOSALS[:2], objects))
    np.testing.assert_array_equal(found.boxes[0][:6], [*foreground, *PROPOSALS[2:4]])
    np.testing.assert_array_equal(found.classes[0][:6], [2, 1, 2, 1, 3, 3])
    np.testing.assert_array_equal(found.objects[0][:4], [0, 2, 0, 2])
    np.testing.assert_array_equal(found.targets[0][:4], [*objects, *objects])
    np.testing.assert_array_equal(found.boxes[1][:4], PROPOSALS[:4])
    np.testing.assert_array_equal(found.classes[1][:4], 3)
    np.testing.assert_array_equal(found.valid.sum(1), [6, 4])
    few = regions(jax.random.key(1), num=4, fraction=0.25)
    np.testing.assert_array_equal(few.classes[0] < 3, [1, 0, 0, 0])
    np.testing.assert_array_equal(few.valid.sum(1), [3, 4])


@pytest.mark.parametrize("groups", [3, 1])
def test_box_losses(groups):
    """Sums over the regions of both images, divided by the number of all regions."""
    random = np.random.default_rng(0)
    found = regions(num=10, fraction=0.5)
    boxes, classes, _, targets, valid = (np.concatenate(part) for part in found)
    logits = random.normal(size=(20, 4)).astype(np.float32)
    deltas = random.normal(size=(20, groups, 4)).astype(np.float32)
    weights = (10.0, 10.0, 5.0, 5.0)

    def loss(logits, deltas):
        each = losses.box_losses(logits, deltas, boxes, classes, targets, valid, weights=weights)
        return sum(each), each

    (_, (of_classes, of_boxes)), gradients = jax.jit(
        jax.value_and_grad(loss, (0, 1), has_aux=True)
    )(logits, deltas)
    exact = logits[valid].astype(np.float64)
    entropy = np.log(np.exp(exact).sum(1)) - exact[np.arange(10), classes[valid]]
    np.testing.assert_allclose(of_classes, entropy.mean(), rtol=1e-5)
    rows = np.arange(4)  # the foreground
    group = classes[rows] if groups == 3 else np.zeros(4, int)
    difference = deltas[rows, group] - coded(boxes[rows], targets[rows], weights)
    np.testing.assert_allclose(of_boxes, np.abs(difference).sum() / 10, rtol=1e-5)
    expected = np.zeros_like(deltas)
    expected[rows, group] = np.sign(difference) / 10
    np.testing.assert_allclose(gradients[1], expected, rtol=1e-6)
    np.testing.assert_array_equal(np.any(gradients[0], 1), valid)


def test_no_region_at_all():
    nothing = jnp.zeros((2, 4)), jnp.zeros((2, 1, 4)), jnp.zeros((2, 4)), jnp.zeros(2, int)
    found = losses.box_losses(*nothing, jnp.zeros((2, 4)), jnp.zeros(2, bool), weights=(1,) * 4)
    np.testing.assert_array_equal(found, 0)
