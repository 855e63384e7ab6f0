"""Masks of objects, by the authors' results, pycocotools and plain arrays."""

import json

import jax
import numpy as np
import pytest
from detection_golden import OPS, OPTIONS
from detector_golden import load
from pycocotools import mask as coco

from resnest_jax.data import instances
from resnest_jax.data.geometry import Transform
from resnest_jax.errors import InputError
from resnest_jax.models.detection.masks import mask_targets

SIZE = tuple(OPTIONS["mask"]["image"])
POLYGONS = OPTIONS["mask"]["polygons"]
CELLS = 28


def bits(name, width):
    """Return stored bits as bool (..., width)."""
    return np.unpackbits(OPS[name], axis=-1)[..., :width].astype(bool)


def test_polygons():
    bitmaps = [instances.to_bitmap(polygons, SIZE) for polygons in POLYGONS]
    np.testing.assert_array_equal(bitmaps, bits("mask/bitmaps", SIZE[1]))


def test_targets():
    """On a padded canvas; a cell whose average is near a half may differ, here none does."""
    height, width = SIZE
    padded = np.pad(bits("mask/bitmaps", width), ((0, 0), (0, 6), (0, 8)))
    targets = jax.jit(lambda *arrays: mask_targets(*arrays, CELLS))(
        instances.pack_masks(padded),
        np.array([height, width]),
        OPS["mask/boxes"],
        OPS["mask/index"].astype(np.int32),
    )
    sure = bits("mask/sure", CELLS)
    assert sure.mean() > 0.99
    np.testing.assert_array_equal(targets[sure], bits("mask/from_bitmaps", CELLS)[sure])
    agreement = (targets == bits("mask/from_polygons", CELLS)).mean()
    np.testing.assert_allclose(agreement, OPTIONS["mask"]["agreement"], atol=1e-3)


def test_paste():
    height, width = OPTIONS["paste"]["image"]
    pasted = [
        instances.paste_mask(mask, box, (height, width))
        for mask, box in zip(OPS["paste/masks"], OPS["paste/boxes"], strict=True)
    ]
    np.testing.assert_array_equal(pasted, bits("paste/out", width))


@pytest.mark.parametrize("box", [[5, 5, 5, 20], [30, 4, 40, 9], [-9, -9, -1, -1]])
def test_an_empty_box_or_one_outside_covers_nothing(box):
    assert not instances.paste_mask(np.ones((4, 4)), np.array(box), (12, 20)).any()


def ring():
    """Return an object with a hole and a second part."""
    pixels = np.zeros((12, 17), bool)
    pixels[2:9, 3:10], pixels[4:6, 5:8], pixels[10:, 12:] = True, False, True
    return pixels


def uncompressed(pixels):
    """Return the run-length code of pixels, column by column, from a loop."""
    counts, last = [0], False
    for pixel in pixels.ravel(order="F").tolist():
        if pixel != last:
            counts.append(0)
        counts[-1] += 1
        last = pixel
    return {"size": list(pixels.shape), "counts": counts}


def test_run_length_codes():
    """Compressed, as text or bytes, and not."""
    pixels = ring()
    code = instances.encode_mask(pixels)
    assert coco.area(code) == pixels.sum()
    for segmentation in (
        json.loads(json.dumps(code)),
        code | {"counts": code["counts"].encode()},
        uncompressed(pixels),
        uncompressed(~pixels),
    ):
        inverse = segmentation == uncompressed(~pixels)
        found = instances.to_bitmap(segmentation, pixels.shape)
        np.testing.assert_array_equal(found, pixels ^ inverse)


def test_polygons_are_united_and_lines_left_out():
    """An even-odd rule would make a hole where two parts overlap."""
    square, other = [2, 2, 8, 2, 8, 8, 2, 8], [5, 5, 11, 5, 11, 11, 5, 11]
    expected = np.zeros((12, 14), bool)
    expected[2:8, 2:8] = expected[5:11, 5:11] = True
    line = [0, 0, 13, 11]
    for segmentation in ([square, other], [line, square, other]):
        np.testing.assert_array_equal(instances.to_bitmap(segmentation, (12, 14)), expected)
    assert not instances.to_bitmap([line], (12, 14)).any()
    assert not instances.to_bitmap([], (12, 14)).any()


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ({"size": [17, 12], "counts": [204]}, r"its run-length code is of size \[17, 12\]"),
        ({"size": [12, 17], "counts": [200]}, "its run-length code has 200 pixels"),
        ({"size": [12, 17], "counts": [300, -96]}, "its run-length code has 204 pixels"),
        ({"size": [12, 17], "counts": "0"}, "its run-length code has 0 pixels"),
        ({"size": [12, 17]}, "KeyError"),
        ({"size": [12, 17], "counts": None}, "TypeError"),
        ({"size": [12, 17], "counts": [3, "x"]}, "TypeError"),
        ([[1, 2, 3, 4, 5, "x"]], "'x'"),
        ([[1, 2, 3, 4, 5, 6, 7]], "pairs of finite numbers"),
        ([[1, 2, 3, 4, 5, float("nan")]], "pairs of finite numbers"),
    ],
)
def test_broken_masks_are_named(segmentation, message):
    with pytest.raises(InputError, match=rf"image of size \(12, 17\) is broken: .*{message}"):
        instances.to_bitmap(segmentation, (12, 17))


TRANSFORMS = [
    Transform(False, (12, 17), (0, 0), (32, 32)),
    Transform(True, (12, 17), (3, 4), (6, 8)),
    Transform(True, (36, 51), (5, 7), (24, 32)),
]


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_masks_follow_their_pixels(transform):
    """Polygons, their run-length code and the image agree for whole factors; so does the box."""
    box = np.array([[3, 2, 10, 9]])
    polygon = [3, 2, 10, 2, 10, 9, 3, 9]
    pixels = instances.to_bitmap([polygon], (12, 17))
    code = instances.encode_mask(pixels)
    expected = transform.apply_labels(pixels.astype(np.uint8), 0).astype(bool)
    for segmentation in ([polygon], code):
        moved = instances.transform_mask(segmentation, transform, pixels.shape)
        np.testing.assert_array_equal(moved, expected)
    x0, y0, x1, y1 = transform.apply_boxes(box, pixels.shape)[0].astype(int)
    outline = np.zeros_like(expected)
    outline[y0:y1, x0:x1] = True
    np.testing.assert_array_equal(outline, expected)


def test_a_polygon_beyond_the_image_is_cut_there():
    """Not at the end of the canvas."""
    transform = Transform(False, (12, 17), (0, 0), (32, 32))
    moved = instances.transform_mask([[10, 8, 30, 8, 30, 30, 10, 30]], transform, (12, 17))
    expected = np.zeros((32, 32), bool)
    expected[8:12, 10:17] = True
    np.testing.assert_array_equal(moved, expected)


def test_codes_of_other_programs():
    """Those that COCO's evaluation set has, of every length of a run."""
    annotations = load("coco.json.gz")["ground_truth"]["annotations"]
    codes = [a["segmentation"] for a in annotations if isinstance(a["segmentation"], dict)]
    assert len(codes) > 10
    for code in codes:
        found = instances.to_bitmap(code, tuple(code["size"]))
        np.testing.assert_array_equal(found, coco.decode(code))
