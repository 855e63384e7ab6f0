"""Pictures of boxes: where lines and names are, and that names can be read."""

import detection_data as data
import matplotlib.image
import numpy as np
import pytest
from PIL import Image
from test_detection_data import batches_of

from resnest_jax.errors import InputError
from resnest_jax.tasks.detection import draw
from resnest_jax.tasks.detection.draw import (
    PALETTE,
    class_colours,
    colour,
    draw_batch,
    draw_boxes,
    draw_masks,
    label_map,
    mask_colours,
    save_label_map,
)

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


def grid(side, gap):
    """Return 49 square boxes in rows and columns."""
    x, y = (place.ravel() for place in np.meshgrid(*[np.arange(7) * (side + gap)] * 2))
    return np.stack([x, y, x + side, y + side], 1).astype(float)


@pytest.mark.parametrize("num_classes", [1, 80])
@pytest.mark.parametrize("gap", [-3, 0, 4])
def test_masks_near_each_other_have_other_colours(num_classes, gap):
    """Of one class: the eight around each; those far away may have the same."""
    boxes = grid(10, gap)
    colours = np.array(mask_colours(boxes, np.zeros(49, int), num_classes), float)
    at = boxes[:, :2] / (10 + gap)
    near = np.abs(at[:, None] - at).max(-1) == 1
    assert np.linalg.norm(colours[:, None] - colours, axis=-1)[near].min() > 65


def test_masks_far_from_each_other_have_the_colours_of_their_classes():
    classes = np.arange(49) % 3
    assert mask_colours(grid(10, 20), classes, 3) == [colour(i) for i in classes]
    many = mask_colours(np.ones((30, 1)) * (0, 0, 9, 9), np.zeros(30, int), 3)  # too many
    assert {many.count(own) for own in many} == {2, 3}
    assert len({*many}) == PALETTE


def test_masks():
    """Mixed with the image, the border in full; a pixel of two objects is the first one's."""
    masks = np.zeros((2, 40, 60), bool)
    masks[0, 5:20, 10:30], masks[1, 10:35, 25:60] = True, True
    labels = label_map(masks, (40, 60))
    assert labels[12, 27] == 1
    assert [np.sum(labels == i) for i in (1, 2)] == [15 * 20, 25 * 35 - 10 * 5]
    image = np.full((40, 60, 3), 100, np.uint8)
    own = [(200, 0, 0), (0, 255, 50)]
    picture = draw_masks(image, labels, own)
    np.testing.assert_array_equal(picture[labels == 0], image[labels == 0])
    assert picture[12, 20].tolist() == [150, 50, 50]
    assert picture[25, 50].tolist() == [50, 177, 75]
    for y, x in ((5, 20), (19, 15), (12, 10), (12, 29)):
        assert picture[y, x].tolist() == [200, 0, 0]
    assert picture[12, 30].tolist() == [0, 255, 50]
    assert picture[30, 59].tolist() == [50, 177, 75]  # no line along the edge of the image
    assert (image == 100).all()


@pytest.mark.parametrize(("count", "mode"), [(255, "P"), (256, "I;16")])
def test_label_maps_are_files(count, mode, tmp_path):
    """Of as many objects as a palette has colours, and of one more."""
    labels = np.arange(count + 1, dtype=np.uint16).repeat(2).reshape(2, -1)
    own = [colour(i) for i in range(count)]
    save_label_map(np.asfortranarray(labels), own, tmp_path / "labels.png")
    with Image.open(tmp_path / "labels.png") as file:
        assert file.mode == mode
        np.testing.assert_array_equal(file, labels)
        if mode == "P":
            colours = np.asarray(file.convert("RGB"))
            assert colours.reshape(-1, 3)[::2].tolist() == [[0, 0, 0], *map(list, own)]
    with pytest.raises(InputError, match="cannot be written"):
        save_label_map(labels, own, tmp_path / "nowhere" / "labels.png")


def test_batch_with_masks(tmp_path, monkeypatch):
    """The pixels of objects are coloured, no others."""
    data.write_coco(tmp_path)

    class Run:
        batches = batches_of(tmp_path, model__name="mask_rcnn")

    drawn = []
    monkeypatch.setattr(draw, "draw_boxes", lambda image, *_: drawn.append(image) or image)
    draw_batch(Run, tmp_path / "batch.png", "train")
    batch = next(Run.batches.train(0))
    assert len(drawn) == len(batch["image"])
    for picture, image, bits in zip(drawn, batch["image"], batch["masks"], strict=True):
        inside = np.unpackbits(bits, axis=-1).any(0)
        changed = (picture != image).any(-1)
        assert inside.any()
        assert not changed[~inside].any()
        assert changed[inside].mean() > 0.95


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
