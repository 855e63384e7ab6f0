"""Non-maximum suppression, by the authors' results and a plain loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from detection_golden import ops

from resnest_jax.models.detection.boxes import iou
from resnest_jax.models.detection.nms import BLOCK, nms

CASES = ["few", "many", "edge"]


def kept(boxes, scores, threshold, **groups):
    index, valid = jax.jit(nms, static_argnums=3)(boxes, scores, threshold, len(boxes), **groups)
    assert (np.diff(valid.astype(int)) <= 0).all()
    return np.asarray(index)[valid]


@pytest.mark.parametrize("threshold", [0.5, 0.7])
@pytest.mark.parametrize("name", CASES)
def test_goldens(name, threshold):
    stored = ops(f"nms/{name}")
    boxes, scores = stored["boxes"], stored["scores"]
    end = f"keep{threshold * 100:.0f}"
    np.testing.assert_array_equal(kept(boxes, scores, threshold), stored[end])
    if name != "edge":
        tied = kept(boxes, stored["tied_scores"], threshold)
        np.testing.assert_array_equal(tied, stored[f"tied_{end}"])
        by_class = kept(boxes, scores, threshold, classes=stored["classes"])
        np.testing.assert_array_equal(by_class, stored[f"class_{end}"])


def greedy(boxes, scores, threshold, classes, valid):
    """Return what is kept, taken one by one."""
    overlaps = np.asarray(iou(jnp.asarray(boxes), jnp.asarray(boxes)))
    found = []
    for i in np.argsort(-scores, kind="stable"):
        rivals = [j for j in found if classes[i] == classes[j] and overlaps[i, j] > threshold]
        if valid[i] and not rivals:
            found.append(i)
    return found


def test_a_batch_is_greedy():
    """Images need different numbers of blocks; one has no box, one has few boxes kept."""
    size = 2 * BLOCK + 40
    random = np.random.default_rng(0)
    corner = random.uniform(0, [[[200]], [[60]], [[200]], [[0]]], (4, size, 2))
    boxes = np.concatenate((corner, corner + random.uniform(20, 60, (4, size, 2))), -1)
    boxes = boxes.astype(np.float32)
    scores = random.integers(0, 99, (4, size)).astype(np.float32)  # with ties
    classes = random.integers(0, 3, (4, size))
    valid = random.random((4, size)) < np.array([[0.9], [0.9], [0], [1]])

    @jax.jit
    @jax.vmap
    def suppressed(boxes, scores, classes, valid):
        return nms(boxes, scores, 0.4, 70, classes=classes, valid=valid)

    index, found = suppressed(boxes, scores, classes, valid)
    for i in range(4):
        expected = greedy(boxes[i], scores[i], 0.4, classes[i], valid[i])[:70]
        np.testing.assert_array_equal(np.asarray(index[i])[found[i]], expected)
    assert found[0].all()
    assert not found[2].any()
    assert 0 < found[3].sum() < 70


def test_large_classes_and_boxes_are_exact():
    """Boxes shifted by class * side would lose the halves of a pixel that decide here."""
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 5.1], [0, 0, 10, 4.9]], np.float32) + 4e3
    classes = np.full(3, 10_000)
    scores = np.array([3, 2, 1], np.float32)
    np.testing.assert_array_equal(kept(boxes, scores, 0.5, classes=classes), [0, 2])
