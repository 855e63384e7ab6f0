"""Mixup and cutmix against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnest_jax.errors import InputError
from resnest_jax.tasks.classification.mixing import Mixing, random_boxes


def test_mixup_of_a_batch():
    """Images and targets are the same blend with the reversed batch; weights are Beta."""
    images = np.arange(6.0, dtype=np.float32).reshape(6, 1, 1, 1)
    targets = np.eye(6)
    weights = []
    mix = jax.jit(Mixing(mixup=0.2))
    for seed in range(300):
        mixed, labels = mix(jax.random.key(seed), images, targets)
        weight = float(labels[0, 0])
        expected = weight * targets + (1 - weight) * targets[::-1]
        np.testing.assert_allclose(labels, expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(
            mixed, weight * images + (1 - weight) * images[::-1], rtol=1e-5, atol=1e-5
        )
        weights.append(weight)
    variance = 0.25 / (2 * 0.2 + 1)  # of Beta(a, a)
    np.testing.assert_allclose(np.mean(weights), 0.5, atol=0.1)
    np.testing.assert_allclose(np.var(weights), variance, rtol=0.2)


@pytest.mark.parametrize("fields", [{"mixup": 0.5}, {"cutmix": 1.0}, {"mixup": 0.5, "cutmix": 1.0}])
@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_targets_weigh_what_the_images_hold(fields, per_sample, groups):
    """Image i is the constant i; its share of partner j is the target's."""
    size, batch = 16, 8
    images = np.broadcast_to(
        np.arange(batch, dtype=np.float32)[:, None, None, None], (8, 16, 16, 1)
    )
    mix = jax.jit(Mixing(**fields, per_sample=per_sample, groups=groups))
    partner = np.arange(batch).reshape(groups, -1)[:, ::-1].ravel()
    shares = []
    for seed in range(20):
        mixed, targets = mix(jax.random.key(seed), images, jnp.eye(batch))
        own = np.diag(targets)
        np.testing.assert_allclose(targets[np.arange(batch), partner], 1 - own, atol=1e-6)
        expected = own * np.arange(batch) + (1 - own) * partner
        np.testing.assert_allclose(np.mean(mixed, (1, 2, 3)), expected, atol=1e-4)
        if "mixup" not in fields:  # each pixel is from one or the other
            whole = np.isclose(mixed, images) | np.isclose(mixed, images[partner])
            assert whole.all()
            np.testing.assert_allclose(own * size**2, np.round(own * size**2), atol=1e-3)
        assert (len(np.unique(np.round(own, 5))) > 1) == per_sample or own.max() == 1
        shares.append(own)
    assert np.std(shares) > 0.1


def test_boxes_cover_the_area_asked_for():
    """Boxes lose a part at the border of the image; the mean follows from that."""
    area = jnp.full(4000, 0.25)
    boxes = random_boxes(jax.random.key(0), area, 32, 48)
    rows, columns = np.asarray(boxes.max(2).sum(1)), np.asarray(boxes.max(1).sum(1))
    assert rows.max() == 16
    assert columns.max() == 24
    np.testing.assert_allclose(boxes.sum((1, 2)), rows * columns)
    # A side of half the length with a uniform centre keeps 7/8 of itself in the mean.
    np.testing.assert_allclose(rows.mean() / 16, 7 / 8, atol=0.02)
    np.testing.assert_allclose(columns.mean() / 24, 7 / 8, atol=0.02)


def test_nothing_to_mix_changes_nothing():
    images, targets = np.ones((4, 2, 2, 3), np.float32), np.eye(4)
    mixed = Mixing()(jax.random.key(0), images, targets)
    assert mixed[0] is images
    assert mixed[1] is targets


def test_bad_fields_are_named():
    with pytest.raises(InputError, match=r"mix.cutmix must not be negative, and finite; got -1"):
        Mixing(cutmix=-1)
    with pytest.raises(InputError, match="3 parts must divide the batch of 4 images"):
        Mixing(mixup=1.0, groups=3)(jax.random.key(0), np.ones((4, 2, 2, 3)), np.eye(4))
