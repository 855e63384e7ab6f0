"""From images with boxes to batches: sizes, canvases, order."""

import functools
import itertools
import json

import detection_data as data
import golden
import grain
import numpy as np
import pytest
from PIL import Image
from records import assert_same_batches, take

from resnest_jax.data import geometry
from resnest_jax.data.batches import LoaderOptions
from resnest_jax.data.loader import HostShard, train_batches
from resnest_jax.data.order import grouped
from resnest_jax.errors import InputError
from resnest_jax.models.inputs import padded
from resnest_jax.tasks.detection.canvases import make_canvases
from resnest_jax.tasks.detection.loading import (
    check_data,
    make_batches,
    make_eval_batches,
    open_boxes,
)
from resnest_jax.tasks.detection.transforms import TrainTransform
from resnest_jax.tasks.loading import loader_options

FOLDER = golden.FOLDER / "detection"
PIPELINE = json.loads((FOLDER / "pipeline.json").read_text())
ARRAYS = np.load(FOLDER / "pipeline.npz")


@functools.cache
def golden_image() -> np.ndarray:
    case = PIPELINE["resize_image"]
    random, (h, w) = np.random.RandomState(case["seed"]), case["size"]
    cells = random.randint(0, 256, (-(-h // 16), -(-w // 16), 3))
    cells = cells.repeat(16, 0).repeat(16, 1)[:h, :w]
    return np.clip(cells + random.randint(-20, 21, (h, w, 3)), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("case", PIPELINE["resize"], ids=str)
def test_golden_sizes(case):
    height, width, short, longest, *expected = case
    assert list(geometry.short_side((height, width), short, longest)) == expected


@pytest.mark.parametrize("name", ["down", "mixed", "up"])
def test_golden_images(name):
    expected = ARRAYS[f"resize/{name}"]
    canvas = (64, 96)
    transform = geometry.Transform(False, expected.shape[:2], (0, 0), canvas)
    height, width = expected.shape[:2]
    image = transform.apply_image(golden_image())
    np.testing.assert_array_equal(image[:height, :width], expected)
    assert image.shape == (*canvas, 3)
    assert not image[height:].any()
    assert not image[:, width:].any()
    # detectron2 mirrors after resizing, which gives the same pixels.
    mirrored = geometry.Transform(True, expected.shape[:2], (0, 0), (height, width))
    np.testing.assert_array_equal(mirrored.apply_image(golden_image()), expected[:, ::-1])


def test_golden_boxes():
    boxes, size = ARRAYS["flip/boxes"], tuple(PIPELINE["resize_image"]["size"])
    resized = ARRAYS["resize/up"].shape[:2]

    def clipped(name, shape):
        return np.clip(ARRAYS[f"flip/{name}"], 0, (shape[1], shape[0]) * 2)

    plain = geometry.Transform(False, resized, (0, 0), (64, 96)).apply_boxes(boxes, size)
    np.testing.assert_allclose(plain, clipped("resized", resized), atol=1e-5)
    mirrored = geometry.Transform(True, size, (0, 0), (64, 96)).apply_boxes(boxes, size)
    np.testing.assert_allclose(mirrored, clipped("out", size), atol=1e-5)
    both = geometry.Transform(True, resized, (0, 0), (64, 96)).apply_boxes(boxes, size)
    np.testing.assert_allclose(both[:, 0], resized[1] - plain[:, 2], atol=1e-5)
    window = geometry.Transform(False, size, (5, 7), (20, 30)).apply_boxes(boxes, size)
    expected = np.clip(boxes - np.array([7, 5, 7, 5]), 0, [30, 20, 30, 20])
    np.testing.assert_allclose(window, expected, atol=1e-5)


@pytest.mark.parametrize(("sizes", "padded"), PIPELINE["padding"])
def test_golden_padding(sizes, padded):
    """The sides of a batch are the largest ones of the canvases of its images."""
    canvases = [make_canvases(np.array([size]), min(size), max(size)).sizes for size in sizes]
    assert np.max(canvases, (0, 1)).tolist() == padded


def test_canvases():
    sizes = np.array([(480, 640), (427, 640), (500, 500), (640, 480), (100, 1000)])
    derived = make_canvases(sizes, 800, 1333)
    assert derived.sizes == ((800, 1344), (1088, 800))
    assert derived.groups(sizes).tolist() == [0, 0, 1, 1, 0]
    given = make_canvases(sizes, 800, 1333, ((1344, 1344), (800, 1088), (1088, 800)))
    assert given.groups(sizes).tolist() == [1, 0, 2, 2, 0]
    with pytest.raises(InputError, match=r"none holds an image of .*\(640, 480\), which becomes"):
        make_canvases(sizes, 800, 1333, ((800, 1344),))
    assert len(make_canvases(sizes[:2], 800, 1333).sizes) == 1
    mixed = make_canvases(sizes, 800, 1333, wide_apart=False)
    assert mixed.sizes == ((1088, 1344),)
    assert mixed.groups(sizes).tolist() == [0] * 5


def order_of(groups, batch_size, seed=0, batches=60):
    dataset = grouped(grain.MapDataset.range(len(groups)), groups, seed, batch_size)
    records = [dataset[i] for i in range(batches * batch_size)]
    return np.array(records).reshape(batches, batch_size)


@pytest.mark.parametrize("counts", [(7, 4), (1, 9), (23,), (2, 0, 3)])
def test_grouped_order_against_buffers(counts):
    """As detectron2 does it: a buffer per group, emptied when it is full."""
    groups = np.random.default_rng(1).permutation(np.repeat(range(len(counts)), counts))
    found = order_of(groups, 3)
    buffers, expected = [[] for _ in counts], []
    for epoch in range(100):
        for record in np.random.default_rng((0, epoch)).permutation(len(groups)).tolist():
            buffer = buffers[groups[record]]
            buffer.append(record)
            if len(buffer) == 3:
                expected.append(list(buffer))
                buffer.clear()
    assert len(expected) >= len(found)
    assert found.tolist() == expected[: len(found)]


def test_grouped_order_is_random_access():
    groups = np.arange(50) % 3
    whole = order_of(groups, 4)
    late = grouped(grain.MapDataset.range(50), groups, 0, 4)
    assert [late[i] for i in range(200, 240)] == whole.ravel()[200:240].tolist()
    assert all(len({*groups[batch]}) == 1 for batch in whole)
    assert (order_of(groups, 4, seed=1) != whole).any()
    with pytest.raises(InputError, match="seed"):
        order_of(groups, 4, seed=-1)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("coco")
    data.write_coco(root)
    return root


def batches_of(root, workdir=None, **overrides):
    config = data.data_config(root, **overrides)
    check_data(config)
    return make_batches(config, open_boxes(config), loader_options(config, workdir, 4))


def test_batches(root):
    batches = batches_of(root)
    specs = batches.train_specs()
    assert [spec["image"].shape for spec in specs] == [(2, 32, 64, 3), (2, 64, 32, 3)]
    shapes = [{name: leaf.shape for name, leaf in spec.items()} for spec in specs]
    found = take(batches.train(0), 12)
    for batch in found:
        assert {name: value.shape for name, value in batch.items()} in shapes
        for i in range(2):
            height, width = batch["size"][i]
            assert not batch["image"][i][height:].any()
            assert not batch["image"][i][:, width:].any()
            assert 24 <= min(height, width) <= 32
            assert max(height, width) <= 64
            valid, boxes = batch["object_valid"][i], batch["boxes"][i]
            assert 1 <= valid.sum() <= 4
            assert not boxes[~valid].any()
            assert np.all(boxes[valid][:, 2:] > boxes[valid][:, :2])
            assert np.all(boxes[valid][:, 2:] <= [width, height])
    assert len({batch["image"].shape for batch in found}) == 2
    assert_same_batches(take(batches_of(root).train(5), 3), found[5:8])
    keys = [batches.train_keys(step) for step in range(8)]
    assert len({key for step in keys for key in step}) == 10


def test_boxes_follow_their_pixels(tmp_path):
    """An object is bright: in the batch, its box is still around the bright pixels."""
    file = data.content(0, 8)
    file["annotations"] = [data.entry(i, 7, (4 + i, 6, 20, 12)) for i in range(8)]
    data.write_split(tmp_path, "train", file)
    data.write_split(tmp_path, "val", file)
    for image in file["images"]:
        pixels = np.zeros((image["height"], image["width"], 3), np.uint8)
        pixels[6:18, 4 + image["id"] : 24 + image["id"]] = 255
        for split in ("train", "val"):
            Image.fromarray(pixels).save(tmp_path / split / image["file_name"])
    batches = batches_of(tmp_path, data__short_sides=(36, 80), data__long_side=128)
    evaluated = list(batches.eval())
    for batch in [*take(batches.train(0), 8), *evaluated]:
        for image, boxes in zip(batch["image"], batch["boxes"], strict=True):
            bright = np.argwhere(image[..., 0] > 127)
            if len(bright):
                edges = [*bright.min(0)[::-1], *(bright.max(0)[::-1] + 1)]
                np.testing.assert_allclose(boxes[0], edges, atol=1)
    assert {bool(b["valid"].all()) for b in evaluated} <= {True, False}
    indices = np.concatenate([b["index"][b["valid"]] for b in evaluated])
    assert sorted(indices.tolist()) == list(range(8))


def test_evaluation_sees_every_image_once(root):
    config = data.data_config(root)
    dataset = open_boxes(config)
    batches = make_eval_batches(config, dataset, loader_options(config, None, 2))
    assert batches.num_eval == 5
    seen = []
    for step, batch in enumerate(batches.eval()):
        valid = batch["valid"]
        assert batches.eval_indices(step)[: valid.sum()] == batch["index"][valid].tolist()
        assert not batch["image"][~valid].any()
        for i in np.flatnonzero(valid):
            index = int(batch["index"][i])
            seen.append(index)
            size = dataset.eval.sizes[index]
            assert batch["original_size"][i].tolist() == size.tolist()
            assert batch["size"][i].tolist() == list(geometry.short_side(tuple(size), 32, 64))
            own = batch["object_valid"][i]
            scale = np.tile((batch["size"][i] / size)[::-1], 2)
            expected = dataset.eval[index]["boxes"] * scale
            np.testing.assert_allclose(batch["boxes"][i][own], expected, atol=1e-4)
    assert sorted(seen) == list(range(5))


def test_an_unreadable_image_is_replaced_by_one_of_its_canvas(tmp_path):
    data.write_coco(tmp_path)
    for name in ("train/01.png", "val/101.png"):
        (tmp_path / name).write_bytes(b"broken")
    batches = batches_of(tmp_path, tmp_path, loader__max_unreadable=2)
    found = take(batches.train(0), 10)
    assert {batch["image"].shape for batch in found} == {
        spec["image"].shape for spec in batches.train_specs()
    }
    assert sum(int(batch["valid"].sum()) for batch in batches.eval()) == 4
    unreadable = (tmp_path / "unreadable_0.txt").read_text().splitlines()
    assert unreadable == [str(tmp_path / name) for name in ("train/01.png", "val/101.png")]


def test_canvases_hold_all_parts_of_images():
    """And the largest part needs them."""
    for size in ((40, 64), (48, 48), (45, 50), (64, 20)):
        (canvas,) = make_canvases(np.array([size]), 90, 150, crop=0.6).sizes
        sides = [range(int(0.6 * side + 0.5), side + 1) for side in size]
        parts = [geometry.short_side(part, 90, 150) for part in itertools.product(*sides)]
        assert canvas == padded(tuple(map(max, zip(*parts, strict=True))))


def test_boxes_follow_their_pixels_in_parts_of_images(tmp_path):
    """The objects are bright; of one that is cut off the box is cut off, too."""
    file = data.content(0, 8)
    file["annotations"] = []
    for image in file["images"]:
        file["annotations"].append(data.entry(image["id"], 7, (4, 6, 20, 12)))
        file["annotations"].append(data.entry(image["id"], 3, (28, 26, 10, 8)))
    for split in ("train", "val"):
        data.write_split(tmp_path, split, file)
        for image in file["images"]:
            pixels = np.zeros((image["height"], image["width"], 3), np.uint8)
            pixels[6:18, 4:24, 1] = pixels[26:34, 28:38, 0] = 255
            Image.fromarray(pixels).save(tmp_path / split / image["file_name"])
    limits = {"data__short_sides": (36, 80), "data__long_side": 128}
    batches = take(batches_of(tmp_path, data__crop=0.5, **limits).train(0), 16)
    for batch in batches:
        for i, place in np.argwhere(batch["object_valid"]):
            bright = np.argwhere(batch["image"][i, ..., batch["classes"][i, place]] > 127)
            if len(bright):
                edges = [*bright.min(0)[::-1], *(bright.max(0)[::-1] + 1)]
                np.testing.assert_allclose(batch["boxes"][i, place], edges, atol=1.5)
    counts = np.concatenate([batch["object_valid"].sum(1) for batch in batches])
    assert {*counts.tolist()} == {1, 2}
    sides = np.concatenate([batch["size"] for batch in batches])
    shapes = {height / width for height, width in sides.tolist()}
    assert len(shapes) > 20  # those of four images, otherwise


def test_two_hosts_have_the_batches_of_one():
    groups = np.arange(12) % 2
    elements = grouped(grain.MapDataset.range(12), groups, 3, 4).map(lambda i: {"i": np.array(i)})
    one = take(train_batches(elements, HostShard(4)), 6)
    hosts = [take(train_batches(elements, HostShard(4, index, 2)), 6) for index in range(2)]
    for whole, *parts in zip(one, *hosts, strict=True):
        np.testing.assert_array_equal(whole["i"], np.concatenate([part["i"] for part in parts]))


def test_of_too_many_objects_some_are_chosen(tmp_path):
    file = data.content(0, 2)
    file["annotations"] = [data.entry(0, 7, (i, i, 10, 10)) for i in range(9)]
    file["annotations"].append(data.entry(1, 3, (0, 0, 10, 10)))
    for split in ("train", "val"):
        data.write_split(tmp_path, split, file)
    config = data.data_config(tmp_path)
    dataset = open_boxes(config)
    assert (
        "1 of 2 training images have more than data.max_objects 4 objects, 9" in dataset.notes[-1]
    )
    canvases = make_canvases(dataset.train.sizes, 40, 64)
    transform = TrainTransform(canvases, 4, (40,), flip=False)
    element = {**dataset.train[0], "image": data.picture(0, 40, 64)}
    chosen = [transform.random_map(element, np.random.default_rng(s))["boxes"] for s in range(20)]
    starts = [boxes[:, 0].tolist() for boxes in chosen]
    assert {x for start in starts for x in start} == set(range(9))
    assert all(start == sorted({*start}) for start in starts)


def test_short_sides(root):
    config = data.data_config(root)
    dataset = open_boxes(config)
    canvases = make_canvases(dataset.train.sizes, 40, 64)
    element = {**dataset.train[2], "image": data.picture(0, 48, 48)}

    def sides(short_sides, sampling):
        transform = TrainTransform(canvases, 4, short_sides, sampling)
        made = [transform.random_map(element, np.random.default_rng(s)) for s in range(60)]
        return {int(m["size"].min()) for m in made}

    assert sides((24, 27), "range") == {24, 25, 26, 27}
    assert sides((24, 30, 40), "choice") == {24, 30, 40}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"data__short_sides": ()}, "data.short_sides must be positive"),
        ({"data__short_sides": (0, 9)}, "data.short_sides must be positive"),
        ({"data__short_sides": (24, 30, 40)}, "must be the least and the largest"),
        ({"data__short_side_sampling": "any"}, "data.short_side_sampling must be one of"),
        ({"data__long_side": 30}, "data.long_side 30 must not be less"),
        ({"data__canvases": (64, 64)}, "data.canvases must be pairs"),
        ({"data__canvases": ((64, 65),)}, "data.canvases must be pairs"),
        ({"data__crop": 0.0}, r"data.crop must be in \(0, 1\]; got 0"),
        ({"data__max_objects": 0}, "data.max_objects must be at least 1"),
        ({"evaluation__short_side": 0}, "evaluation.short_side must be from 1"),
        ({"evaluation__short_side": 65}, "evaluation.short_side must be from 1"),
        ({"evaluation__long_side": 31}, "must be from 1 to evaluation.long_side 31; got 32"),
        (
            {"data__aspect_grouping": False, "data__canvases": ((32, 64), (64, 32))},
            r"needs one canvas .*got data.canvases \(\(32, 64\), ",
        ),
        ({"evaluation__view_sides": (0,)}, "evaluation.view_sides must be positive"),
        ({"evaluation__view_long_side": 39}, "evaluation.view_long_side 39 must not be less"),
    ],
)
def test_keys_out_of_range(overrides, message, root):
    with pytest.raises(InputError, match=message):
        check_data(data.data_config(root, **overrides))


def test_options_of_the_loader(root):
    config = data.data_config(root)
    dataset = open_boxes(config)
    with pytest.raises(InputError, match="batch_size 11 must not exceed the 10 training"):
        make_batches(config, dataset, LoaderOptions(batch_size=11, eval_batch_size=1))
