"""Pictures of boxes: where lines and names are, and that names can be read."""

import detection_data as data
import matplotlib.image
import numpy as np
import pytest
from test_detection_data import batches_of

from resnest_jax.errors import InputError
from resnest_jax.tasks.detection.draw import class_colours, colour, draw_batch, draw_boxes

GREY = np.full((400, 800, 3), 90, np.uint8)


def where(picture, own):
    """Return left, top, right and bottom of the pixels of a colour, the last two included."""
    rows, columns = np.nonzero((picture == own).all(-1))
    return [columns.min(), rows.min(), columns.max(), rows.max()]


def test_lines_are_on_the_edges():
    boxes = np.array([(100.0, 50, 300, 200)])
    picture = draw_boxes(GREY, boxes, [""], [(255, 0, 0)])
    assert picture.shape == GREY.shape
    inside = picture[60:190, 110:290]
    np.testing.assert_array_equal(inside, GREY[60:190, 110:290])
    lines = draw_boxes(GREY, boxes, ["name"], [(255, 0, 0)])[50:]
    assert where(lines, (255, 0, 0)) == [100, 0, 299, 149]


def test_a_small_image_is_enlarged_whole():
    picture = draw_boxes(
        np.zeros((30, 50, 3), np.uint8), np.array([(0, 0, 50, 30)]), ["a"], [(9, 9, 9)]
    )
    assert picture.shape == (390, 650, 3)
    assert (picture[-1] == 9).all()
    assert (picture[:, -1] == 9).all()


def test_names_do_not_cover_each_other():
    boxes = np.array([(100, 100, 180, 180), (104, 102, 184, 182), (400, 0, 480, 80)], float)
    own = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
    alone = [draw_boxes(GREY, boxes[i : i + 1], ["a name"], own[i : i + 1]) for i in range(3)]
    together = draw_boxes(GREY, boxes, ["a name"] * 3, own)
    for i in range(3):
        count = (together == own[i]).all(-1).sum()
        assert count > 0.8 * (alone[i] == own[i]).all(-1).sum()
    many = np.repeat(boxes[:1], 50, 0)
    crowded = draw_boxes(GREY, many, ["a name"] * 50, own[:1] * 50)  # not all have a place
    assert crowded.shape == GREY.shape
    assert len(draw_boxes(GREY, np.zeros((0, 4)), [], [])) == 400


def test_colours_of_neighbours_are_far_apart():
    colours = np.array([colour(i) for i in range(80)], float)
    near = np.linalg.norm(colours[1:] - colours[:-1], axis=1)
    assert near.min() > 100
    assert len({*map(tuple, colours.tolist())}) == 80
    assert class_colours(np.array([1, 1]), 3) == [colour(1)] * 2
    assert class_colours(np.array([0, 0]), 1) == [colour(0), colour(1)]


@pytest.mark.parametrize("split", ["train", "eval"])
def test_batch(split, tmp_path):
    data.write_coco(tmp_path)

    class Run:
        batches = batches_of(tmp_path)

    draw_batch(Run, tmp_path / "batch.png", split)
    picture = matplotlib.image.imread(tmp_path / "batch.png")[..., :3]
    near = [np.abs(255 * picture - colour(i)).max(-1) < 8 for i in range(3)]
    assert np.any(near, 0).mean() > 0.002
    with pytest.raises(InputError, match="cannot be written"):
        draw_batch(Run, tmp_path / "nowhere" / "batch.png", split)
