"""Crops and transforms of images, against hand-written ones."""

import collections

import cv2
import numpy as np
import pytest

from resnest_jax.data.augment import random_flip, random_shift
from resnest_jax.data.crops import resize_and_center_crop
from resnest_jax.errors import InputError
from resnest_jax.tasks.classification.transforms import EvalTransform, TrainTransform

_RGB = np.random.default_rng(0).integers(0, 256, (3, 4, 3), np.uint8)


@pytest.mark.parametrize("shape", [(20, 8), (8, 20), (8, 8), (8, 9)])
def test_centre_crop_at_the_same_scale_is_a_slice(shape):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    top, left = (shape[0] - 8) // 2, (shape[1] - 8) // 2
    expected = image[top : top + 8, left : left + 8]
    np.testing.assert_array_equal(resize_and_center_crop(image, 8), expected)


def test_shrinking_averages_and_enlarging_interpolates():
    image = np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)
    blocks = image[:, 4:20].reshape(8, 2, 8, 2, 3).mean((1, 3))
    np.testing.assert_allclose(resize_and_center_crop(image, 8), blocks, atol=0.51)

    ramp = np.broadcast_to(np.arange(0, 160, 10, dtype=np.uint8)[None, :, None], (16, 16, 3))
    enlarged = resize_and_center_crop(ramp, 32)
    assert enlarged.shape == (32, 32, 3)
    # Away from the border, pixel x of 32 looks at x / 2 - 1/4 of 16.
    inside = np.arange(4, 28)
    np.testing.assert_allclose(enlarged[5, inside, 0], (inside / 2 - 0.25) * 10, atol=1)


def test_shift_is_one_of_all_whole_moves_over_black():
    image = np.random.default_rng(0).integers(1, 256, (8, 16, 3), np.uint8)
    padded = np.pad(image, ((1, 1), (2, 2), (0, 0)))
    # A window at (1 - y, 2 - x) of the padded image shows it moved by (y, x).
    possible = {
        padded[1 - y : 9 - y, 2 - x : 18 - x].tobytes() for y in range(-1, 2) for x in range(-2, 3)
    }
    rng = np.random.default_rng(1)
    seen = collections.Counter(random_shift(image, rng, 0.125).tobytes() for _ in range(1500))
    assert seen.keys() == possible
    assert min(seen.values()) > 60  # 100 expected of each of the 15.
    np.testing.assert_array_equal(random_shift(image, rng, 0.0), image)


def test_flip_mirrors_half_of_the_time():
    image = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    rng = np.random.default_rng(1)
    seen = collections.Counter(random_flip(image, rng).tobytes() for _ in range(1000))
    assert seen.keys() == {image.tobytes(), np.flip(image, axis=1).tobytes()}
    assert 430 < seen[image.tobytes()] < 570


def test_transforms_give_fixed_shapes_and_types():
    record = {"image": _RGB, "label": 7, "key": "k"}
    rng = np.random.default_rng(0)
    for element in (
        EvalTransform(5).map(record),
        TrainTransform(5, shift=0.5, flip=True).random_map(record, rng),
    ):
        assert element["image"].shape == (5, 5, 3)
        assert element["image"].dtype == np.uint8
        assert element["label"].dtype == np.int32
        assert element["label"] == 7
    # Without augmentation both do the same.
    np.testing.assert_array_equal(
        TrainTransform(5).random_map(record, rng)["image"],
        cv2.resize(_RGB[:, :3], (5, 5), interpolation=cv2.INTER_CUBIC),
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EvalTransform(0), "size.*got 0"),
        (lambda: TrainTransform(-1), "size.*got -1"),
        (lambda: TrainTransform(8, shift=0.6), "shift.*got 0.6"),
        (lambda: TrainTransform(8, shift=-0.1), "shift.*got -0.1"),
    ],
)
def test_transforms_check_their_arguments(make, message):
    with pytest.raises(InputError, match=message):
        make()
