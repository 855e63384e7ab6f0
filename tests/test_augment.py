"""Augmentations against Pillow's operators and closed forms."""

import math

import numpy as np
import pytest
from PIL import Image, ImageChops, ImageEnhance, ImageFilter, ImageOps
from sklearn.datasets import load_sample_image

from resnest_jax.data import augment, autoaugment, crops
from resnest_jax.errors import InputError
from resnest_jax.tasks.classification.transforms import EvalTransform, TrainTransform

PHOTO = load_sample_image("china.jpg")[:200, :260]  # (200, 260, 3)


class Fixed:
    """A generator with given draws: signs are + below one half."""

    def __init__(self, draw):
        self.draw = draw

    def random(self):
        return self.draw


def blended(degenerate, factor):
    """Do in NumPy what ImageEnhance does: blend the image with a degenerate one."""
    mixed = degenerate + factor * (PHOTO.astype(np.float64) - degenerate)
    return np.clip(mixed, 0, 255)


def luma(image):
    """ITU-R 601-2, as Pillow's conversion to grey."""
    return image @ np.array([0.299, 0.587, 0.114])


POINTWISE = {
    "invert": lambda s: 255 - PHOTO,
    "posterize": lambda s: PHOTO & (256 - 2 ** round(4 * s)),
    "solarize": lambda s: np.where(256 * (1 - s) > PHOTO, PHOTO, 255 - PHOTO),
    "brightness": lambda s: blended(0, 1 + 0.9 * s),
    "contrast": lambda s: blended(np.round(luma(PHOTO).mean()), 1 + 0.9 * s),
    "color": lambda s: blended(luma(PHOTO)[..., None], 1 + 0.9 * s),
    "auto_contrast": lambda s: np.stack(
        [(c - c.min()) * (255 / (int(c.max()) - c.min())) for c in PHOTO.transpose(2, 0, 1)], -1
    ),
}


@pytest.mark.parametrize("name", POINTWISE)
@pytest.mark.parametrize("strength", [0.0, 1 / 3, 1.0])
def test_pointwise_operator_is_its_formula(name, strength):
    actual = autoaugment.OPERATORS[name](Image.fromarray(PHOTO), strength, Fixed(0.0))
    np.testing.assert_allclose(np.asarray(actual), POINTWISE[name](strength), atol=1.5)


@pytest.mark.parametrize(("sign", "draw"), [(1, 0.0), (-1, 0.9)])
def test_geometric_operators_move_pixels_where_they_say(sign, draw):
    """On a ramp bilinear interpolation is exact, so a value shows where it comes from."""
    height, width = 60, 80
    y, x = np.mgrid[:height, :width].astype(np.float64)
    ramp = Image.fromarray(np.stack([2 * y, 2 * x, 0 * x], -1).astype(np.uint8))
    rng, strength, angle = Fixed(draw), 0.5, math.radians(15 * sign)
    # Pillow counts from the corner of a pixel; its centre is half a pixel further.
    u, v = x + 0.5 - width / 2, y + 0.5 - height / 2
    sources = {
        "shear_x": (x + sign * 0.15 * (y + 0.5), y),
        "shear_y": (x, y + sign * 0.15 * (x + 0.5)),
        "translate_x": (x + sign * 75 / 331 * width, y),
        "translate_y": (x, y + sign * 75 / 331 * height),
        "rotate": (
            u * math.cos(angle) - v * math.sin(angle) + width / 2 - 0.5,
            u * math.sin(angle) + v * math.cos(angle) + height / 2 - 0.5,
        ),
    }
    for name, (from_x, from_y) in sources.items():
        moved = np.asarray(autoaugment.OPERATORS[name](ramp, strength, rng), np.float64)
        inside = (from_x > 0) & (from_x < width - 1) & (from_y > 0) & (from_y < height - 1)
        assert 0.5 < inside.mean() < 0.97, name
        np.testing.assert_allclose(moved[inside][:, 0], 2 * from_y[inside], atol=1.01, err_msg=name)
        np.testing.assert_allclose(moved[inside][:, 1], 2 * from_x[inside], atol=1.01, err_msg=name)
        far = (from_x < -1) | (from_x > width) | (from_y < -1) | (from_y > height)
        assert (moved[far] == 128).all(), name


def test_equalize_flattens_the_histogram_and_sharpness_is_pillows():
    picture = Image.fromarray(PHOTO)
    equal = np.asarray(autoaugment.OPERATORS["equalize"](picture, 0.3, Fixed(0.0)))
    assert equal.tobytes() == np.asarray(ImageOps.equalize(picture)).tobytes()
    shares = [np.mean(equal <= level) for level in (63, 127, 191)]
    np.testing.assert_allclose(shares, [0.25, 0.5, 0.75], atol=0.04)
    sharp = autoaugment.OPERATORS["sharpness"](picture, 0.5, Fixed(0.0))
    smooth = np.asarray(picture.filter(ImageFilter.SMOOTH), np.float64)
    np.testing.assert_allclose(np.asarray(sharp), blended(smooth, 1.45), atol=1.01)


def test_strength_zero_changes_nothing_if_there_is_a_strength():
    picture = Image.fromarray(PHOTO)
    for name, operator in autoaugment.OPERATORS.items():
        if name not in ("auto_contrast", "equalize", "invert", "sharpness"):
            changed = operator(picture, 0.0, np.random.default_rng(0))
            assert not ImageChops.difference(picture, changed).getbbox(), name


def test_policies_apply_operators_of_their_table(monkeypatch):
    """Counts calls: which operators, how often, how strong."""
    assert len(autoaugment.IMAGENET_POLICY) == 25
    calls = []
    for name in autoaugment.OPERATORS:

        def note(image, strength, rng, name=name):
            calls.append((name, strength))
            return image

        monkeypatch.setitem(autoaugment.OPERATORS, name, note)
    rng = np.random.default_rng(0)
    draws = 5000
    for _ in range(draws):
        autoaugment.auto_augment(PHOTO, rng)
    expected = {}
    for pair in autoaugment.IMAGENET_POLICY:
        for name, probability, level in pair:
            key = name, level / 9
            expected[key] = expected.get(key, 0) + probability * draws / 25
    for key in expected:
        spread = 5 * math.sqrt(expected[key]) + 1
        assert abs(calls.count(key) - expected[key]) < spread, key
    assert set(calls) <= set(expected)

    calls.clear()
    for _ in range(700):
        autoaugment.rand_augment(PHOTO, rng, 2, 12)
    assert len(calls) == 1400
    assert {strength for _, strength in calls} == {12 / 30}
    counts = [sum(name == called for called, _ in calls) for name in autoaugment.OPERATORS]
    assert min(counts) > 60
    assert max(counts) < 145


def test_inception_boxes_have_the_areas_and_ratios_asked_for():
    rng = np.random.default_rng(0)
    boxes = np.array([crops.inception_box(rng, 400, 500) for _ in range(4000)])
    left, top, right, bottom = boxes.T
    assert (left >= 0).all()
    assert (top >= 0).all()
    assert (right <= 500).all()
    assert (bottom <= 400).all()
    area = (right - left) * (bottom - top) / (400 * 500)
    ratio = (right - left) / (bottom - top)
    assert 0.07 < area.min() < 0.09
    assert area.max() > 0.95
    assert 0.74 < ratio.min() < 0.77
    assert 1.31 < ratio.max() < 1.35
    # Log-uniform: as many below as above the geometric mean, which is 1.
    assert abs(np.mean(np.log(ratio[area < 0.5]))) < 0.02
    np.testing.assert_allclose(np.mean(left / np.maximum(500 - (right - left), 1)), 0.5, atol=0.03)


def test_boxes_of_images_that_no_box_fits():
    rng = np.random.default_rng(0)
    assert crops.inception_box(rng, 10, 1000) == (493, 0, 506, 10)  # 13 = round(10 * 4 / 3)
    assert crops.inception_box(rng, 1000, 9) == (0, 494, 9, 506)
    assert crops.efficientnet_box(rng, 1, 1000, 320) == (500, 0, 501, 1)


def test_efficientnet_boxes():
    rng = np.random.default_rng(0)
    boxes = np.array([crops.efficientnet_box(rng, 400, 500, 320) for _ in range(4000)])
    left, top, right, bottom = boxes.T
    assert boxes.min() >= 0
    assert (right <= 500).all()
    assert (bottom <= 400).all()
    area = (right - left) * (bottom - top) / (400 * 500)
    ratio = (right - left) / (bottom - top)
    assert 0.099 < area.min() < 0.12
    assert 0.85 < area.max() < 1
    assert 0.74 < ratio.min() < 0.76
    assert 1.31 < ratio.max() < 1.35
    # Heights, not areas, are uniform: the mean height is midway between minimum and maximum.
    tall = (ratio > 0.95) & (ratio < 1.05)
    np.testing.assert_allclose((bottom - top)[tall].mean(), (math.sqrt(20000) + 400) / 2, rtol=0.05)


@pytest.mark.parametrize(("rule", "size", "side"), [("authors", 224, 175), ("0.875", 224, 175)])
def test_eval_crops_are_pillow_by_hand(rule, size, side):
    """200 * 224 / 256 = 200 * 0.875 = 175, in the middle of 200 x 260."""
    left, top = round((260 - side) / 2), round((200 - side) / 2)
    box = (left, top, left + side, top + side)
    expected = Image.fromarray(PHOTO).crop(box).resize((size, size), Image.Resampling.BICUBIC)
    actual = EvalTransform(size, rule).map({"image": PHOTO, "label": 1})["image"]
    np.testing.assert_array_equal(actual, np.asarray(expected))


def test_training_resize_is_close_to_pillows_antialiased_one():
    """Area averaging against Pillow's triangle; without antialiasing the difference is 3.7."""
    box = (10, 5, 250, 195)
    expected = Image.fromarray(PHOTO).crop(box).resize((64, 64), Image.Resampling.BILINEAR)
    difference = crops.resize_box(PHOTO, box, 64) - np.asarray(expected, np.float64)
    assert np.abs(difference).mean() < 2.5


def test_jitter_is_pillows_three_enhancers_in_some_order():
    orders = {
        (first, second, 3 - first - second)
        for first in range(3)
        for second in range(3)
        if first != second
    }
    for seed in range(6):
        rng = np.random.default_rng(seed)
        order = tuple(rng.permutation(3))
        assert order in orders
        picture = Image.fromarray(PHOTO)
        for index in order:
            kind = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[index]
            picture = kind(picture).enhance(rng.uniform(0.6, 1.4))
        actual = augment.color_jitter(PHOTO, np.random.default_rng(seed), 0.4)
        np.testing.assert_array_equal(actual, np.asarray(picture))


def test_lighting_moves_along_the_principal_components():
    grey = np.full((2, 2, 3), 128, np.uint8)
    rng = np.random.default_rng(0)
    moved = np.array([augment.random_lighting(grey, rng, 0.1)[0, 0] for _ in range(4000)]) - 128.0
    directions, deviations = augment.COLOR_DIRECTIONS, augment.COLOR_DEVIATIONS
    np.testing.assert_allclose(directions.T @ directions, np.eye(3), atol=2e-3)
    expected = directions @ np.diag((0.1 * deviations) ** 2) @ directions.T
    np.testing.assert_allclose(np.cov(moved.T), expected, atol=0.8)
    flat = augment.random_lighting(PHOTO, np.random.default_rng(1), 0.1).astype(int) - PHOTO
    assert len(np.unique(flat[(PHOTO > 40) & (PHOTO < 215)].reshape(-1, 1))) <= 3


def test_erasing_fills_one_box_with_noise():
    rng = np.random.default_rng(0)
    shares, erased = [], 0
    black = np.zeros((50, 60, 3), np.uint8)
    for _ in range(1000):
        image = augment.random_erasing(black, rng, 0.25)
        rows, columns = np.flatnonzero(image.any((1, 2))), np.flatnonzero(image.any((0, 2)))
        if len(rows):
            erased += 1
            box = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            assert box.any(-1).mean() > 0.99
            shares.append(box[..., 0].size / 3000)
    assert 200 < erased < 300
    assert not black.any()
    assert min(shares) > 0.015
    assert max(shares) < 0.36
    np.testing.assert_allclose(np.mean(shares), (0.02 + 0.33) / 2, atol=0.03)


EVERYTHING = {
    "shift": 0.1,
    "flip": True,
    "jitter": 0.4,
    "lighting": 0.1,
    "erasing": 0.5,
}


@pytest.mark.parametrize("crop", ["center", "inception", "efficientnet"])
@pytest.mark.parametrize("policy", ["none", "autoaugment", "randaugment"])
def test_everything_together_is_reproducible(crop, policy):
    transform = TrainTransform(48, crop=crop, policy=policy, **EVERYTHING)
    element = {"image": PHOTO, "label": 3, "key": "k"}

    def draw(seed):
        return transform.random_map(element, np.random.default_rng(seed))["image"]

    images = [draw(seed) for seed in range(5)]
    assert all(image.shape == (48, 48, 3) and image.dtype == np.uint8 for image in images)
    assert len({image.tobytes() for image in images}) == 5
    np.testing.assert_array_equal(draw(3), images[3])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"crop": "random"}, r"augment.crop must be one of .*'inception'.*got 'random'"),
        ({"policy": "auto"}, "augment.policy must be one of .*got 'auto'"),
        ({"policy_magnitude": 31}, r"augment.policy_magnitude must be in \[0, 30\]; got 31"),
        ({"jitter": -0.1}, r"augment.jitter must be in \[0, 1\]; got -0.1"),
        ({"erasing": 2.0}, r"augment.erasing must be in \[0, 1\]; got 2.0"),
    ],
)
def test_bad_fields_are_named(fields, message):
    with pytest.raises(InputError, match=message):
        TrainTransform(32, **fields)


@pytest.mark.parametrize("rule", ["all", "1.5", "0"])
def test_unknown_eval_crops_are_refused(rule):
    with pytest.raises(InputError, match="eval_crop must be 'whole', 'authors' or a fraction"):
        EvalTransform(32, rule)
