"""Matching and sampling, by the authors' results and plain loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from detection_golden import OPS, ops

from resnest_jax.models.detection.boxes import iou
from resnest_jax.models.detection.matching import match, sample

# Name in the goldens: options
RULES = {
    "rpn": {"low": 0.3, "high": 0.7, "low_quality": True},
    "roi50": {"low": 0.5, "high": 0.5},
    "roi60": {"low": 0.6, "high": 0.6},
    "roi70": {"low": 0.7, "high": 0.7},
}


@pytest.mark.parametrize("name", RULES)
def test_match(name):
    """Padded objects, first, last and in between, change nothing."""
    stored = ops(f"match/{name}")
    rows, padded = [1, 2, 4, 5, 7, 8], np.zeros((2, 10, 90), np.float32)
    padded[:, rows] = OPS["match/q"], OPS["match/q0"]
    valid = np.isin(np.arange(10), rows)

    @jax.jit
    @jax.vmap
    def matched(quality):
        return match(lambda i: quality[i], jnp.asarray(valid), **RULES[name])

    found = matched(padded)
    for i, case in enumerate(("q", "q0")):
        np.testing.assert_array_equal(np.array(rows)[stored[f"{case}_index"]], found.index[i])
        np.testing.assert_array_equal(found.label[i], stored[f"{case}_label"])
    nothing = match(lambda i: jnp.zeros(5), jnp.zeros(3, bool), **RULES[name])
    np.testing.assert_array_equal(nothing.index, stored["empty_index"])
    np.testing.assert_array_equal(nothing.label, stored["empty_label"])


def test_every_object_gets_a_box():
    """The highest overlap is found where it is computed, however the compiler arranges it."""
    random = np.random.default_rng(0)
    corner = random.uniform(0, 300, (2, 500, 2))
    candidates, others = np.concatenate(
        (corner, corner + random.uniform(5, 200, (2, 500, 2))), -1
    ).astype(np.float32)
    objects = others[:40]

    @jax.jit
    def matched(objects, candidates):
        def overlaps(i):
            return iou(objects[i][None], candidates)[0]

        return match(overlaps, jnp.ones(40, bool), low=0.3, high=2.0, low_quality=True)

    found = matched(objects, candidates)
    quality = np.asarray(iou(jnp.asarray(objects), jnp.asarray(candidates)))
    expected = np.where(quality.max(0) < 0.3, 0, -1)
    expected[(quality == quality.max(1, keepdims=True)).any(0)] = 1
    np.testing.assert_array_equal(found.label, expected)
    np.testing.assert_array_equal(found.index, quality.argmax(0))


def draw(label, background, num, fraction, key=None):
    """Sample by labels; return the foreground's and the background's indices."""
    label = jnp.asarray(label)
    foreground = (label != background) & (label != -1)
    found = sample(foreground, label == background, num, fraction, key)
    assert len(found.index) == num
    assert not (found.foreground & ~found.valid).any()
    order = found.foreground.astype(int) + found.valid.astype(int)
    assert (np.diff(order) <= 0).all()  # foreground, background, padding
    index = np.asarray(found.index)
    return index[found.foreground], index[found.valid & ~found.foreground]


SAMPLES = {"rpn": (0, 64, 0.5), "roi": (7, 48, 0.25), "few": (7, 400, 0.25)}


@pytest.mark.parametrize("name", SAMPLES)
def test_sample(name):
    foreground, background = draw(OPS["sample/label"], *SAMPLES[name])
    np.testing.assert_array_equal(foreground, OPS[f"sample/{name}_pos"])
    np.testing.assert_array_equal(background, OPS[f"sample/{name}_neg"])


def test_random_sample_is_uniform_and_without_replacement():
    label = np.repeat([1, 0, -1], (30, 50, 20))
    foreground = np.arange(100) < 30
    drawn = jax.jit(
        jax.vmap(lambda key: sample(jnp.asarray(foreground), jnp.asarray(label == 0), 20, 0.5, key))
    )(jax.random.split(jax.random.key(0), 400))
    assert drawn.valid.all()
    assert (drawn.foreground.sum(1) == 10).all()
    index = np.asarray(drawn.index)
    assert all(len(np.unique(row)) == 20 for row in index)
    np.testing.assert_array_equal(foreground[index], drawn.foreground)
    counts = np.bincount(index.ravel(), minlength=100)
    assert (counts[80:] == 0).all()
    # Each is drawn in a third or a fifth of the draws: 133 or 80 times; within 5 sigma.
    assert abs(counts[:30] - 400 / 3).max() < 48
    assert abs(counts[30:80] - 80).max() < 40
