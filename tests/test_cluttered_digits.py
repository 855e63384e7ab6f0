"""The data set of digits among clutter: its pictures and splits."""

import cv2
import numpy as np
import pytest
from sklearn.datasets import load_digits

from resnest_jax.data.builtin import cluttered_digits
from resnest_jax.data.sources import open_dataset


@pytest.fixture(scope="module")
def ink():
    return load_digits().images / 16


@pytest.fixture
def photographs():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (40, 50, 3), np.uint8)]


def compose(ink, photographs, which=0, seed=0):
    return cluttered_digits.compose(np.random.default_rng(seed), ink, which, photographs)


def test_a_bare_picture_is_the_digit_enlarged(monkeypatch, ink):
    """Without fragments, noise, rotation and background only the resized digit is left."""
    for name, value in (("FRAGMENTS", 0), ("NOISE", 0.0), ("MAX_TURN", 0.0), ("DIMMED", 0.0)):
        monkeypatch.setattr(cluttered_digits, name, value)
    monkeypatch.setattr(cluttered_digits, "SIDES", (32.0, 32.0))  # leaves one position
    white = {"fragment": (255.0, 255.0), "digit": (255.0, 255.0)}
    monkeypatch.setattr(cluttered_digits, "COLOURS", white)
    picture = compose(ink, [np.zeros((32, 32, 3), np.uint8)], which=5)
    expected = 255 * cv2.resize(ink[5], (32, 32), interpolation=cv2.INTER_LINEAR)
    # At the border the picture fades into the background; resizing repeats the pixels.
    inner = slice(3, -3)
    for channel in range(3):
        difference = picture[inner, inner, channel] - expected[inner, inner]
        assert np.abs(difference).max() < 12
        assert np.abs(difference).mean() < 2


def test_a_picture_follows_from_its_seed(ink, photographs):
    picture = compose(ink, photographs, seed=3)
    assert picture.shape == (32, 32, 3)
    assert picture.dtype == np.uint8
    np.testing.assert_array_equal(picture, compose(ink, photographs, seed=3))
    assert np.any(picture != compose(ink, photographs, seed=4))


def test_splits_and_classes(tmp_path, ink):
    dataset = open_dataset("cluttered_digits", data_dir=tmp_path)
    assert (len(dataset.train), len(dataset.eval)) == (4 * 1437, 10 * 360)
    assert dataset.class_names == tuple("0123456789")
    labels = [dataset.eval[i]["label"] for i in range(len(dataset.eval))]
    digits = np.bincount(load_digits().target)
    assert np.all(np.abs(np.bincount(labels) / 10 - digits / 5) < 1)
    image = cv2.imdecode(np.frombuffer(dataset.train[0]["image"], np.uint8), cv2.IMREAD_UNCHANGED)
    assert image.shape == (32, 32, 3)
