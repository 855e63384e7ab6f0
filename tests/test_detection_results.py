"""Final detections, by the authors' results."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from detection_golden import OPS, OPTIONS, ops

from resnest_jax.models.detection.detections import rescale, select_detections

CASES = [f"{case}{kind}" for case in ("top20", "all", "high") for kind in ("", "_agnostic")]


@pytest.mark.parametrize("name", CASES)
def test_detections(name):
    """Padding with the best scores changes nothing, nor does another image of the batch."""
    score_threshold, threshold, num = OPTIONS["infer"][name.removesuffix("_agnostic")]
    boxes, probabilities = OPS["infer/boxes"].reshape(80, 6, 4), OPS["infer/probs"]
    if name.endswith("agnostic"):
        boxes = boxes[:, :1]
    boxes = np.concatenate((boxes, boxes[::-1]))
    probabilities = np.concatenate((probabilities, np.ones_like(probabilities)))
    valid = np.arange(160) < np.array([[80], [0]])

    @jax.jit
    @jax.vmap
    def select(valid):
        size = jnp.array(OPTIONS["infer"]["image"])
        limits = {"num": num, "score_threshold": score_threshold, "threshold": threshold}
        return select_detections(boxes, probabilities, valid, size, **limits)

    detections, rows = select(valid)
    assert not detections.valid[1].any()
    found = {**detections._asdict(), "rows": rows}
    stored = ops(f"infer/{name}")
    if "rows" in stored:  # they count without the regions that are not finite
        finite = np.isfinite(OPS["infer/boxes"]).all(1) & np.isfinite(OPS["infer/probs"]).all(1)
        stored["rows"] = np.flatnonzero(finite)[stored["rows"]]
    count = len(stored["scores"])
    assert detections.valid[0].sum() == count
    for field in stored:
        of_image = np.asarray(found[field][0])
        np.testing.assert_array_equal(of_image[:count], stored[field])
        assert not of_image[count:].any()


def test_rescale():
    boxes, valid = jax.jit(rescale)(
        OPS["post/boxes"],
        jnp.ones(4, bool),
        jnp.array(OPTIONS["post"]["model"]),
        jnp.array(OPTIONS["post"]["output"]),
    )
    np.testing.assert_allclose(boxes[valid], OPS["post/out"], rtol=1e-6)
    assert not rescale(boxes, jnp.zeros(4, bool), jnp.ones(2), jnp.ones(2))[1].any()
