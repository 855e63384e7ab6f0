"""Proposals, by the authors' results."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from detection_golden import OPTIONS, ops

from resnest_jax.models.detection.anchors import pyramid_anchors
from resnest_jax.models.detection.proposals import select_proposals

LEVELS = ("p2", "p3", "p4", "p5", "p6")


def outputs():
    """Return logits (N, A) and deltas (N, A, 4) of each level, and the shapes of the levels."""
    stored = ops("rpn")
    logits = [stored[f"logits_{level}"] for level in LEVELS]
    deltas = [stored[f"deltas_{level}"].reshape(2, -1, 4) for level in LEVELS]
    return [x.reshape(2, -1) for x in logits], deltas, [x.shape[1:3] for x in logits]


@pytest.mark.parametrize("case", OPTIONS["rpn_cases"])
def test_goldens(case):
    before, num, minimum = OPTIONS["rpn_cases"][case]
    logits, deltas, shapes = outputs()
    if case == "nonfinite":
        logits, deltas = [x.copy() for x in logits], [x.copy() for x in deltas]
        logits[0][0, 0] = np.nan
        logits[0][0, (1 * 24 + 1) * 3 + 1] = np.inf
        deltas[1][0, 0, 0] = np.nan
        logits[2][1, 0] = -np.inf
    select = partial(select_proposals, num_before=before, num=num, minimum=minimum)
    anchors = pyramid_anchors(shapes)
    found = jax.jit(jax.vmap(lambda *image: select(*image[:2], anchors, image[2])))(
        logits, deltas, jnp.array(OPTIONS["rpn"]["image_sizes"])
    )
    assert found.boxes.shape == (2, num, 4)
    for i in range(2):
        boxes, scores = ops(f"rpn/{case}")[f"boxes{i}"], ops(f"rpn/{case}")[f"scores{i}"]
        assert found.valid[i].sum() == len(boxes)
        np.testing.assert_array_equal(found.scores[i][: len(boxes)], scores)
        np.testing.assert_allclose(found.boxes[i][: len(boxes)], boxes, rtol=0, atol=1e-4)
        assert not found.boxes[i][len(boxes) :].any()
