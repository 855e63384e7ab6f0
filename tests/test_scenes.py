"""The built-in scenes: pictures, masks, splits, and the files that segmentation and
detection read."""

import itertools
import threading

import numpy as np
import pytest
from pycocotools import mask as coco
from sklearn.datasets import load_digits, load_sample_images

from resnest_jax.config import complete
from resnest_jax.data.builtin import scenes
from resnest_jax.data.images import Images
from resnest_jax.data.label_maps import MaskDecoder
from resnest_jax.data.sources import open_masks
from resnest_jax.data.sources import scenes as files
from resnest_jax.errors import InputError
from resnest_jax.lock import write_once
from resnest_jax.tasks.detection.loading import open_boxes


def first(count, split="validation"):
    return list(itertools.islice(scenes.scenes(split), count))


@pytest.fixture(scope="module")
def materials():
    return scenes.materials()


@pytest.fixture
def dark(materials, monkeypatch):
    """A material of black photographs, and scenes without noise."""
    monkeypatch.setattr(scenes, "NOISE", 0.0)
    black = np.zeros((200, 200, 3), np.uint8)
    return materials["training"]._replace(photographs=[black])


@pytest.fixture
def few(monkeypatch, tmp_path):
    """Few scenes, in a directory of their own."""
    monkeypatch.setattr(scenes, "SCENES", {"training": 3, "validation": 2})
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    return tmp_path / "scenes" / scenes.VERSION


def test_scenes_are_always_the_same():
    once, again = first(3), first(3)
    for a, b in zip(once, again, strict=True):
        np.testing.assert_array_equal(a.image, b.image)
        assert [d.value for d in a.digits] == [d.value for d in b.digits]
        np.testing.assert_array_equal([d.mask for d in a.digits], [d.mask for d in b.digits])
    # Other numbers would be another data set.
    assert [[d.value for d in scene.digits] for scene in first(5)] == [
        [1],
        [6, 6],
        [5],
        [4],
        [4],
    ]
    assert np.any(once[0].image != first(1, "training")[0].image)


def test_a_digit_has_the_pixels_that_it_covers_by_half(dark, monkeypatch):
    monkeypatch.setattr(scenes, "MOST", 1)
    for seed in range(10):
        scene = scenes.compose(np.random.RandomState(seed), dark)
        (digit,) = scene.digits
        channel = scene.image.max((0, 1)).argmax()
        brightness = scene.image[..., channel].astype(float)
        half = brightness.max() / 2
        sure = np.abs(brightness - half) > 1  # grey values are rounded
        np.testing.assert_array_equal(digit.mask[sure], (brightness > half)[sure])
        assert sure.mean() > 0.99


def test_a_covered_pixel_is_the_upper_digit_s(dark, monkeypatch):
    monkeypatch.setattr(scenes, "SIDES", (48.0, 64.0))  # so that many scenes have several
    several = 0
    for seed in range(30):
        image, digits = scenes.compose(np.random.RandomState(seed), dark)
        assert np.max(sum(digit.mask.astype(int) for digit in digits)) == 1
        several += len(digits) > 1
        for digit in digits:
            colours, counts = np.unique(image[digit.mask], axis=0, return_counts=True)
            pure = np.all(image == colours[counts.argmax()], -1)
            assert pure.sum() > digit.mask.sum() / 2
            assert not np.any(pure & ~digit.mask)
    assert several > 5


def test_a_later_digit_hides_little():
    mask = np.zeros((20, 20), bool)
    mask[:10] = True  # 200 pixels
    digits = [scenes.Digit(3, mask)]
    for columns, expected in ((1, True), (2, False)):  # hides 10 or 20
        place = np.s_[:, 5 : 5 + columns]
        assert scenes._hides_little(np.ones((20, columns), bool), place, digits) == expected


def test_splits_share_no_digit_and_no_part_of_a_photograph(materials):
    train, held_out = materials["training"], materials["validation"]
    of_split = [{ink.tobytes() for ink in material.ink} for material in (train, held_out)]
    assert not of_split[0] & of_split[1]
    assert len(train.ink) + len(held_out.ink) == len(load_digits().target)
    shares = np.bincount(held_out.values) / np.bincount(load_digits().target)
    assert np.all(np.abs(shares - 0.2) < 0.005)
    for whole, *parts in zip(
        load_sample_images().images, train.photographs, held_out.photographs, strict=True
    ):
        np.testing.assert_array_equal(np.hstack(parts), whole)


def test_files_are_read_as_label_maps(few):
    dataset = open_masks("scenes")
    assert (len(dataset.train), len(dataset.eval)) == (3, 2)
    assert dataset.class_names == (
        *("zero", "one", "two", "three", "four"),
        *("five", "six", "seven", "eight", "nine", "ground"),
    )
    assert len(dataset.table.palette) == 11
    records = Images(dataset.eval, decode=MaskDecoder(dataset.table))
    for index, scene in enumerate(first(2)):
        expected = np.full((scenes.SIZE, scenes.SIZE), 10)
        for digit in scene.digits:
            expected[digit.mask] = digit.value
        np.testing.assert_array_equal(records[index]["labels"], expected)
        difference = records[index]["image"].astype(int) - scene.image
        assert np.abs(difference).mean() < 8  # JPEG
    # The folder is an example of a user's own, too.
    own = open_masks(f"masks:{few}")
    assert own.class_names == dataset.class_names
    assert own.table.values == dataset.table.values == tuple(range(11))


def test_files_are_read_as_boxes_and_masks(few):
    values = {"task": "detection", "dataset": "scenes", "model.name": "mask_rcnn"}
    dataset = open_boxes(complete(values))
    assert (len(dataset.train), len(dataset.eval)) == (3, 2)
    assert dataset.class_names == (
        *("zero", "one", "two", "three", "four"),
        *("five", "six", "seven", "eight", "nine"),
    )
    for index, scene in enumerate(first(2)):
        record = dataset.eval[index]
        assert record["classes"].tolist() == [digit.value for digit in scene.digits]
        for box, digit in zip(record["boxes"].astype(int), scene.digits, strict=True):
            left, top, right, bottom = box
            inside = np.zeros_like(digit.mask)
            inside[top:bottom, left:right] = True
            assert not np.any(digit.mask & ~inside)
            assert digit.mask[top].any()
            assert digit.mask[bottom - 1].any()
            assert digit.mask[:, left].any()
            assert digit.mask[:, right - 1].any()
        truth = [o for o in dataset.truth.content["annotations"] if o["image_id"] == index]
        for entry, digit in zip(truth, scene.digits, strict=True):
            np.testing.assert_array_equal(coco.decode(entry["segmentation"]), digit.mask)
            assert entry["area"] == digit.mask.sum()
    for index, scene in enumerate(first(3, "training")):
        segmentations = dataset.train[index]["segmentations"]
        for segmentation, digit in zip(segmentations, scene.digits, strict=True):
            np.testing.assert_array_equal(coco.decode(segmentation), digit.mask)


def test_files_that_a_killed_process_left_are_written_again(few, monkeypatch):
    compose = scenes.compose
    composed = []

    def killed(rng, material):
        if len(composed) == 2:
            raise KeyboardInterrupt
        composed.append(compose(rng, material))
        return composed[-1]

    monkeypatch.setattr(scenes, "compose", killed)
    with pytest.raises(KeyboardInterrupt):
        files.folder()
    assert not few.exists()
    (partial,) = few.parent.glob("*.incomplete")
    (partial / "images/training/9999.jpg").write_text("left over")
    monkeypatch.setattr(scenes, "compose", compose)
    assert files.folder() == few
    assert len(open_masks("scenes").train) == 3
    assert not partial.exists()
    written = (few / "classes.txt").stat().st_mtime_ns
    files.folder()
    assert (few / "classes.txt").stat().st_mtime_ns == written


def test_a_folder_is_written_by_one_of_two(tmp_path):
    begun, go_on, writers = threading.Event(), threading.Event(), []

    def write(folder):
        writers.append(threading.current_thread())
        begun.set()
        go_on.wait(60)
        (folder / "file").write_text("whole")

    threads = [threading.Thread(target=write_once, args=(tmp_path / "1", write)) for _ in range(2)]
    threads[0].start()
    assert begun.wait(60)
    threads[1].start()
    assert not (tmp_path / "1").exists()
    go_on.set()
    for thread in threads:
        thread.join(60)
    assert writers == threads[:1]
    assert (tmp_path / "1" / "file").read_text() == "whole"


def test_directories_that_cannot_be_used_are_named(few, monkeypatch):
    few.parent.write_text("in the way")
    with pytest.raises(InputError, match=r"dataset scenes .*1.2.0 cannot be written: "):
        open_masks("scenes")
    monkeypatch.setenv("TFDS_DATA_DIR", "gs://bucket")
    with pytest.raises(InputError, match=r"TFDS_DATA_DIR must be a local path; got 'gs:"):
        open_masks("scenes")
    with pytest.raises(InputError, match=r"'scenes:x': expected scenes or one of ade20k:PATH"):
        open_masks("scenes:x")
