"""The transform of an image and its label map against the authors' code."""

import dataclasses
import hashlib

import numpy as np
import pytest
import segmentation_golden as golden

from resnest_jax.data import geometry
from resnest_jax.data.label_tables import IGNORED, published_table
from resnest_jax.models.inputs import MEAN, STD

CASES = golden.cases("augment")
# Name in the goldens: name here, values of the label maps
DATASETS = {
    "ade20k": ("ade20k", [0, 1, 2, 3, 75, 149, 150]),
    "pcontext": ("pascal_context", [0, 1, 2, 30, 58, 59]),
    "citys": ("cityscapes", range(34)),
    "pascal_voc": ("voc", [0, 1, 7, 20, 255]),
    "pascal_aug": ("voc_aug", [0, 1, 7, 20]),
}


def picture(case):
    random = np.random.RandomState(case["seed"])
    shape = (1, case["h"], case["w"])
    planes = [golden.blocks(random, 8, 248, shape, 4)[0] for _ in range(3)]
    noise = random.randint(-8, 9, (*shape[1:], 3))
    return (np.stack(planes, -1) + noise).astype(np.uint8)


def raw_labels(case):
    values = np.array(DATASETS[case["dataset"]][1])
    random = np.random.RandomState(case["seed"] + 1000)
    cells = golden.blocks(random, 0, len(values), (1, case["h"], case["w"]), 5)[0]
    return values[cells].astype(np.uint8)


def transformed(case):
    """Return the image and the labels of a case."""
    table = published_table(DATASETS[case["dataset"]][0])
    image, labels = picture(case), table.labels(raw_labels(case), "a file")
    if case["mode"] == "testval":
        return image, labels
    size = image.shape[:2]
    if case["mode"] == "train":
        draws = geometry.Draws(case["flip"], case["long"], case["x"], case["y"])
        transform = geometry.random_crop(size, case["crop"], draws)
    else:
        transform = geometry.center_crop(size, case["crop"])
    return transform.apply_image(image), transform.apply_labels(labels, table.padding)


@pytest.mark.parametrize("name", CASES)
def test_golden(name):
    stored = {
        key: golden.ARRAYS[f"{name}/{key}"]
        for key in ("shape", "image", "label", "image_sha256", "label_sha256", "normalised")
    }
    image, labels = transformed(CASES[name])
    assert image.dtype == labels.dtype == np.uint8
    assert image.flags.c_contiguous
    np.testing.assert_array_equal(image.shape, stored["shape"])
    labels = np.where(labels == IGNORED, -1, labels.astype(np.int16)).astype(np.int16)
    step = 13 if CASES[name]["crop"] > 200 else 1
    np.testing.assert_array_equal(image[::step, ::step], stored["image"])
    np.testing.assert_array_equal(labels[::step, ::step], stored["label"])
    assert hashlib.sha256(image.tobytes()).hexdigest() == str(stored["image_sha256"])
    assert hashlib.sha256(labels.tobytes()).hexdigest() == str(stored["label_sha256"])
    normalised = (image[:: 8 * step, :: 8 * step] - np.array(MEAN)) / STD
    np.testing.assert_allclose(normalised, stored["normalised"], atol=1e-5)


class Extreme:
    """In place of a random generator: the smallest or the largest number, always."""

    def __init__(self, largest):
        self.largest = largest

    def random(self):
        return 0.999 if self.largest else 0.0

    def integers(self, low, high, endpoint):
        assert endpoint
        return high if self.largest else low


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name]["mode"] == "train"])
def test_ranges_of_the_draws(name):
    case, ranges = CASES[name], golden.ARRAYS[f"{name}/ranges"]
    size, crop, base = (case["h"], case["w"]), case["crop"], case["base"]
    smallest = geometry.draw(Extreme(False), size, crop, base)
    largest = geometry.draw(Extreme(True), size, crop, base)
    assert (smallest.flip, largest.flip) == (True, False)
    assert [smallest.long, largest.long] == ranges[0].tolist()
    # The range of the place depends on the longer side.
    scale = (case["long"] / base,) * 2
    smallest = geometry.draw(Extreme(False), size, crop, base, scale)
    largest = geometry.draw(Extreme(True), size, crop, base, scale)
    assert [[smallest.x, largest.x], [smallest.y, largest.y]] == ranges[1:].tolist()


def test_draws_are_uniform_and_repeat():
    drawn = [
        geometry.draw(np.random.default_rng(seed), (40, 60), 32, 64, (0.5, 1.0))
        for seed in range(2000)
    ]
    assert drawn[7] == geometry.draw(np.random.default_rng(7), (40, 60), 32, 64, (0.5, 1.0))
    assert abs(np.mean([d.flip for d in drawn]) - 0.5) < 0.05
    counts = np.bincount([d.long for d in drawn])[32:]
    assert len(counts) == 33
    assert counts.min() > 30  # 61 are expected of each
    assert not any(
        geometry.draw(np.random.default_rng(seed), (40, 60), 32, 64, flip=False).flip
        for seed in range(20)
    )


class Fixed(Extreme):
    """As ``Extreme``, with given fractions."""

    def __init__(self, largest, fractions):
        super().__init__(largest)
        self.fractions = fractions

    def random(self, count):
        assert count == len(self.fractions)
        return np.array(self.fractions)


@pytest.mark.parametrize(
    ("box", "offsets"),
    # From the one whose end is at the floor of the centre to the one that starts at its ceiling,
    # as far as the image reaches: detectron2's gen_crop_transform_with_instance.
    [
        ((60, 40, 90, 61), ((0, 0), (5, 20))),
        ((0, 0, 5, 6), ((0, 0), (3, 3))),
        ((190, 98, 199, 99.5), ((3, 14), (5, 20))),
    ],
)
def test_parts_of_an_image(box, offsets):
    """Of 100 x 200 pixels, 95 x 180 of them."""
    for largest, offset in enumerate(offsets):
        part = geometry.draw_part(Fixed(largest, (0.75, 0.5)), (100, 200), 0.8, box)
        assert part == geometry.Part(offset, (95, 180))
    assert geometry.draw_part(Fixed(True, (0, 1)), (100, 200), 0.8, box).size == (80, 200)


@pytest.mark.parametrize("flip", [False, True])
def test_a_part_is_as_an_image_of_its_own(flip):
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    part = geometry.Part((4, 10), (40, 52))
    transform = geometry.Transform(flip, (60, 78), (0, 0), (64, 96), part)
    bare = dataclasses.replace(transform, part=None)
    own = pixels[4:44, 10:62]
    np.testing.assert_array_equal(transform.apply_image(pixels), bare.apply_image(own))
    labels = [transform.apply_labels(pixels[..., 0], 9), bare.apply_labels(own[..., 0], 9)]
    np.testing.assert_array_equal(*labels)
    boxes = np.array([(12.5, 8, 30, 20), (0, 0, 20, 49), (5, 5, 9, 9)])
    moved = transform.apply_boxes(boxes, (50, 70))
    np.testing.assert_allclose(moved, bare.apply_boxes(boxes - (10, 4, 10, 4), (40, 52)))
    assert (moved[2] == moved[2][[0, 3, 0, 3]]).any()
    assert [part.holds(box) for box in boxes] == [True, False, False]


def test_narrow_image_keeps_a_pixel():
    image = np.full((1, 300, 3), 9, np.uint8)
    transform = geometry.random_crop((1, 300), 64, geometry.Draws(False, 50, 0, 0))
    assert (transform.apply_image(image) == 9).sum() == 50 * 3
    assert (transform.apply_labels(image[..., 0], IGNORED) == 9).sum() == 50


@pytest.mark.parametrize(
    ("size", "resized", "offset"),
    [
        ((48, 67), (48, 67), (0, 10)),  # 9.5 is rounded to the even number,
        ((65, 48), (65, 48), (8, 0)),  # as 8.5 is
        ((40, 58), (48, 69), (0, 10)),  # 69.6 is truncated
        ((96, 96), (48, 48), (0, 0)),
    ],
)
def test_center_crop(size, resized, offset):
    assert geometry.center_crop(size, 48) == geometry.Transform(False, resized, offset, (48, 48))


@pytest.mark.parametrize(
    ("size", "resized"),
    # The other side is rounded, halves up.
    [((10, 16), (33, 52)), ((16, 10), (52, 33)), ((10, 10), (52, 52)), ((5, 8), (33, 52))],
)
def test_longer_side(size, resized):
    draws = geometry.Draws(False, 52, 0, 0)
    assert geometry.random_crop(size, 48, draws).resized == resized
