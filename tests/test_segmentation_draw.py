"""Pictures of segmentation: what they hold, and that they can be opened."""

import numpy as np
import pytest
from PIL import Image

from resnest_jax.data.label_tables import IGNORED
from resnest_jax.errors import InputError
from resnest_jax.tasks.segmentation import draw, report
from resnest_jax.tasks.segmentation.metrics import ConfusionMatrix

NAMES = ("sky", "a $very_ long^ name $of a class, in math", "road")
PALETTE = ((250, 0, 0), (0, 250, 0), (0, 0, 250))
LABELS = np.zeros((60, 80), np.uint8)
LABELS[:30, 40:] = 2
LABELS[50:] = IGNORED


def pixels(path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def test_label_map_has_the_labels_and_their_colours(tmp_path):
    path = tmp_path / "map.png"
    draw.save_label_map(LABELS, PALETTE, path)
    with Image.open(path) as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.asarray(image), LABELS)
    colours = pixels(path)
    assert tuple(colours[0, 0]) == PALETTE[0]
    assert tuple(colours[0, -1]) == PALETTE[2]
    assert tuple(colours[-1, 0]) == draw.IGNORED_COLOUR


def test_shares_of_the_labelled_pixels():
    shares = draw.class_shares(LABELS, 3)
    np.testing.assert_allclose(shares, [2800 / 4000, 0, 1200 / 4000])
    np.testing.assert_array_equal(draw.class_shares(np.full((2, 2), IGNORED, np.uint8), 3), 0)


def test_overlay_blends_photo_and_colours(tmp_path):
    path = tmp_path / "overlay.png"
    draw.draw_overlay(np.full((60, 80, 3), 100, np.uint8), LABELS, NAMES, PALETTE, path)
    found = {tuple(colour) for colour in pixels(path).reshape(-1, 3)}
    for colour, is_there in zip(PALETTE, (True, False, True), strict=True):
        blended = np.rint(0.45 * 100 + 0.55 * np.array(colour))
        assert (tuple(blended) in found) == is_there
        assert (colour in found) == is_there  # the legend
    assert (100, 100, 100) in found  # ignored


@pytest.mark.parametrize("num_classes", [3, 90])
def test_scores(tmp_path, num_classes):
    """More classes need more columns of bars; some are absent."""
    names = [f"class $ {i}" for i in range(num_classes)]
    metric = ConfusionMatrix(num_classes)
    metric.add(LABELS, np.where(LABELS == 2, 0, 2).astype(np.uint8))
    draw.draw_class_scores(metric, names, tmp_path / "scores.png")
    report.write(tmp_path, metric, names)
    for name in ("scores.png", "confusion.png"):
        assert pixels(tmp_path / name).std() > 1
    dark = tuple(np.array([8, 48, 107]))  # all pixels of a class, the end of the colours
    found = {tuple(colour) for colour in pixels(tmp_path / "confusion.png").reshape(-1, 3)}
    assert dark in found


def test_directory_missing(tmp_path):
    with pytest.raises(InputError, match="cannot be written"):
        draw.save_label_map(LABELS, PALETTE, tmp_path / "missing" / "map.png")
