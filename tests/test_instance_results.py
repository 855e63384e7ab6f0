"""Scores of masks against stored ones of pycocotools, and masks in results."""

import contextlib
import copy
import csv
import io
import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from test_detection_metrics import STORED, detections

from resnest_jax.data.sources.coco_boxes import GroundTruth
from resnest_jax.tasks.detection import metrics, predict, report
from resnest_jax.tasks.detection.metrics import FIGURES, CocoAP
from resnest_jax.training.task import EvalOutput

IMAGES = STORED["ground_truth"]["images"]
CATEGORIES = STORED["ground_truth"]["categories"]
IOU_TYPES = {"box": "bbox", "mask": "segm"}
EVERY = range(len(IMAGES))
CELLS = 28


@pytest.fixture
def truth():
    """As COCO's file has it: polygons, codes and crowds. A copy: pycocotools writes into it."""
    content = copy.deepcopy(STORED["ground_truth"])
    ids = [tuple(entry["id"] for entry in entries) for entries in (IMAGES, CATEGORIES)]
    return GroundTruth(content, *ids)


def codes(index):
    """Return the run-length codes of the detections of an image."""
    own = [d for d in STORED["detections"] if d["image_id"] == IMAGES[index]["id"]]
    return [d["segmentation"]["counts"] for d in own]


def filled(truth, indices=EVERY):
    """Return a metric with the stored detections of some images."""
    metric = CocoAP(truth, masks=True)
    for index in indices:
        metric.add(index, *detections(index), codes(index))
    return metric


def assert_expected(metric, figures):
    assert [*figures] == [f"{kind}_{name}" for kind in IOU_TYPES for name in FIGURES]
    for kind, iou_type in IOU_TYPES.items():
        expected = STORED["result"][iou_type]
        found = [figures[f"{kind}_{name}"] for name in FIGURES]
        np.testing.assert_allclose(found, expected["stats"], atol=1e-9)
        per_class = np.array(expected["per_category"], float)
        np.testing.assert_allclose(metric.scores[kind].per_class, per_class, atol=1e-9)


def test_golden(truth, tmp_path):
    """Also by pycocotools from the files, of which the boxes are left out: areas are of masks."""
    metric = filled(truth)
    assert_expected(metric, metric.compute())
    metric.write_results(tmp_path / "results.json")
    results = json.loads((tmp_path / "results.json").read_text())
    keys = {"image_id", "category_id", "bbox", "score", "segmentation"}
    assert all(entry.keys() == keys for entry in results)
    assert len(results) == len(STORED["detections"])
    (tmp_path / "truth.json").write_text(json.dumps(STORED["ground_truth"]))
    with contextlib.redirect_stdout(io.StringIO()):
        file = COCO(tmp_path / "truth.json")
        found = file.loadRes([{k: e[k] for k in keys - {"bbox"}} for e in results])
        evaluation = COCOeval(file, found, "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    np.testing.assert_allclose(evaluation.stats, STORED["result"]["segm"]["stats"], atol=1e-12)


def test_processes(truth, monkeypatch):
    """Each of two has its own images, in any order; both return the figures of all."""
    first, second, one = filled(truth, [4, 2, 7]), filled(truth, [6, 0, 1, 5, 3]), filled(truth)
    one.compute()
    sent = []
    monkeypatch.setattr(metrics, "gather_bytes", lambda data: sent.append(data) or [data])
    second.compute()
    monkeypatch.setattr(metrics, "gather_bytes", lambda data: [data, sent.pop(0)])
    assert_expected(first, first.compute())
    assert first.results() == one.results()
    assert not sent


def interpolated(mask, box, size):
    """Return a mask in its box in an image, from values between the centres of its cells."""
    x0, y0, x1, y1 = box
    centres = np.arange(-0.5, CELLS + 1) / CELLS  # with a cell of 0 on each side

    def enlarge(values, begin, end, length):
        at = (np.arange(length) + 0.5 - begin) / (end - begin)
        return np.array([np.interp(at, centres, np.pad(row, 1), 0, 0) for row in values])

    return enlarge(enlarge(mask, x0, x1, size[1]).T, y0, y1, size[0]).T


def batch_of(rng, masks=True):
    """Return two images, resized to half, with four detections; the last is padding, NaN."""
    size = np.array([[image["height"], image["width"]] for image in IMAGES[:2]])
    corners = rng.uniform(-10, 60, (2, 4, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(1, 80, (2, 4, 2))], 2)
    boxes[:, 3] = np.nan
    scores, classes = rng.random((2, 4)), rng.integers(0, 5, (2, 4))
    valid = np.array([[True] * 3 + [False]] * 2)
    probabilities = rng.random((2, 4, 7, 7)).repeat(4, 2).repeat(4, 3)
    found = (boxes, scores, classes, valid, *([probabilities] if masks else []))
    batch = {"valid": np.array([True, True]), "index": np.array([0, 1])}
    return EvalOutput({}, found), batch | {"size": size / 2, "original_size": size}


def test_masks_are_pasted_into_the_original_image(truth):
    output, batch = batch_of(np.random.default_rng(0))
    boxes, _, _, valid, masks = output.per_image
    metric = CocoAP(truth, masks=True)
    metric.update(output, batch)
    results, pixels = metric.results(), 0
    assert len(results) == valid.sum()
    for entry, (i, j) in zip(results, np.argwhere(valid), strict=True):
        size = IMAGES[i]["height"], IMAGES[i]["width"]
        box = np.clip(2 * boxes[i, j], 0, [size[1], size[0]] * 2)
        value = interpolated(masks[i, j], box, size)
        decoded = coco.decode(entry["segmentation"])
        assert decoded.shape == size
        sure = np.abs(value - 0.5) > 1e-4
        np.testing.assert_array_equal(decoded[sure], value[sure] > 0.5)
        pixels += decoded.sum()
    assert pixels > 10_000


@pytest.mark.parametrize("kind", ["truth", "model"])
def test_without_masks_boxes_are_compared(truth, kind):
    """Of the objects, or of the detections."""
    for entry in truth.content["annotations"] if kind == "truth" else ():
        del entry["segmentation"]
    metric = CocoAP(truth, masks=kind == "truth")
    metric.update(*batch_of(np.random.default_rng(0), masks=kind == "truth"))
    assert all(name.startswith("box_") for name in metric.compute())
    assert all("segmentation" not in entry for entry in metric.results())


def test_more_masks_than_255(truth):
    """To pycocotools these are too many at once."""
    metric = CocoAP(truth, masks=True)
    for _ in range(2):
        for index in EVERY:
            metric.add(index, *detections(index), codes(index))
    metric.compute()
    shapes = [entry["segmentation"] for entry in metric.results()]
    assert len(shapes) > 255
    assert metrics._areas(shapes, "mask") == [coco.decode(shape).sum() for shape in shapes]


def test_no_detections(truth):
    metric = CocoAP(truth, masks=True)
    metric.add(2, np.zeros((0, 4)), np.zeros(0), np.zeros(0, int))
    figures = metric.compute()
    assert figures["mask_ap"] == figures["box_ap"] == 0
    assert metric.results() == []


def test_tables(truth, tmp_path):
    metric = filled(truth)
    figures = metric.compute()
    names = [category["name"] for category in CATEGORIES]
    report.write(tmp_path, metric, names)
    rows = [*csv.DictReader(io.StringIO((tmp_path / "per_class.csv").read_text()))]
    assert [*rows[0]] == ["class", "objects", "ap", "mask_ap"]
    for column, iou_type in (("ap", "bbox"), ("mask_ap", "segm")):
        expected = STORED["result"][iou_type]["per_category"]
        found = [float(row[column]) if row[column] else None for row in rows]
        assert found == [score if score is None else round(score, 6) for score in expected]
    lines = report.table(metric, names).splitlines()
    assert lines[0] == "box AP  mask AP  objects  class"
    assert lines[2].split() == ["27.3", "26.8", rows[1]["objects"], names[1]]
    assert lines[5].split()[:2] == ["-", "-"]
    assert lines[6].split()[:3] == [f"{100 * figures[f'{k}_ap']:.1f}" for k in IOU_TYPES] + ["ap"]
    assert len({line.rindex("average") for line in lines[6:]}) == 1


class Stub:
    """A detector that is not called."""

    class_names = ("cat", "dog")


BOXES = np.array([(10, 10, 70, 60), (50, 20, 110, 85), (5, 62, 30, 88)], float)
PHOTO = 90, 140


@pytest.fixture
def predicted(tmp_path, monkeypatch):
    """Return a function that predicts a grey photo with known detections."""

    def run(masks):
        Image.fromarray(np.full((*PHOTO, 3), 90, np.uint8)).save(tmp_path / "photo.png")
        found = predict.Found(BOXES, np.array([0.9, 0.8, 0.3]), np.array([1, 1, 0]), masks)
        monkeypatch.setattr(predict, "make_detect", lambda *_: lambda photo: found)
        assert predict.run(Stub, [str(tmp_path / "photo.png")], tmp_path / "out") == 0
        (image,) = json.loads((tmp_path / "out/detections.json").read_text())["images"]
        return image["detections"]

    return run


def test_predictions_with_masks(predicted, tmp_path):
    """The file has all; the label map those above the threshold, in the colours of the picture."""
    masks = np.random.default_rng(0).random((3, 7, 7)).repeat(4, 1).repeat(4, 2)
    decoded = [coco.decode(found["mask"]).astype(bool) for found in predicted(masks)]
    for pixels, mask, box in zip(decoded, masks, BOXES, strict=True):
        value = interpolated(mask, box, PHOTO)
        sure = np.abs(value - 0.5) > 1e-4
        np.testing.assert_array_equal(pixels[sure], value[sure] > 0.5)
    with Image.open(tmp_path / "out/photo_instances.png") as file:
        labels, colours = np.asarray(file), np.asarray(file.convert("RGB")).astype(int)
    first, second, _ = decoded
    np.testing.assert_array_equal(labels, np.where(first, 1, np.where(second, 2, 0)))
    assert (first & second).sum() > 20
    own = [colours[labels == number][0] for number in (1, 2)]
    assert np.abs(own[0] - own[1]).max() > 65  # of one class, next to each other
    with Image.open(tmp_path / "out/photo_boxes.png") as file:
        scale = file.width // PHOTO[1]
        picture = np.asarray(file)[scale // 2 :: scale, scale // 2 :: scale].astype(int)
    inside = labels > 0
    mixed, full = (
        np.abs(picture - expected).max(-1)[inside] < 2 for expected in ((90 + colours) / 2, colours)
    )
    assert (mixed | full).mean() > 0.9  # the rest is under the names
    assert mixed.any()
    assert (picture[40:55, 115:] == 90).all()


def test_predictions_without_masks(predicted, tmp_path):
    assert [[*found] for found in predicted(None)] == [["class", "score", "box"]] * 3
    files = {file.name for file in (tmp_path / "out").iterdir()}
    assert files == {"photo_boxes.png", "detections.json"}
