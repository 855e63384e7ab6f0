"""COCO's figures against stored ones of pycocotools on another way to them."""

import contextlib
import gzip
import io
import json

import detection_data as data
import golden
import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from resnest_jax.data.sources import open_coco
from resnest_jax.data.sources.coco_boxes import ground_truth
from resnest_jax.data.sources.coco_file import read_coco
from resnest_jax.tasks.detection import metrics, report
from resnest_jax.tasks.detection.metrics import FIGURES, CocoAP, to_original
from resnest_jax.training.task import EvalOutput

FOLDER = golden.FOLDER / "detection"
STORED = json.loads(gzip.decompress((FOLDER / "coco.json.gz").read_bytes()))
EXPECTED = STORED["result"]["bbox"]


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    path = tmp_path_factory.mktemp("coco") / "truth.json"
    path.write_text(json.dumps(STORED["ground_truth"]))
    file = read_coco(path)
    return ground_truth(file, [image["id"] for image in file.images], [*file.categories], [])


def detections(index):
    """Return boxes (left, top, right, bottom), scores and classes of an image."""
    image = STORED["ground_truth"]["images"][index]["id"]
    own = [d for d in STORED["detections"] if d["image_id"] == image]
    boxes = np.array([d["bbox"] for d in own]).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    scores = np.array([d["score"] for d in own])
    classes = np.array([STORED["contiguous"][str(d["category_id"])] for d in own], int)
    return boxes, scores, classes


def assert_expected(metric, figures):
    assert [*figures] == [f"box_{name}" for name in FIGURES]
    np.testing.assert_allclose([*figures.values()], EXPECTED["stats"], atol=1e-9)
    per_class = [np.nan if score is None else score for score in EXPECTED["per_category"]]
    np.testing.assert_allclose(metric.scores["box"].per_class, per_class, atol=1e-9)


def test_golden(truth, tmp_path):
    metric = CocoAP(truth)
    for index in range(len(truth.image_ids)):
        metric.add(index, *detections(index))
    assert_expected(metric, metric.compute())
    metric.write_results(tmp_path / "results.json")
    results = json.loads((tmp_path / "results.json").read_text())

    def key(entry):
        return entry["image_id"], entry["score"]

    stored = sorted(STORED["detections"], key=key)
    assert len(results) == len(stored)
    for found, expected in zip(sorted(results, key=key), stored, strict=True):
        assert set(found) == {"image_id", "category_id", "bbox", "score"}
        assert found["category_id"] == expected["category_id"]
        assert found["score"] == expected["score"]
        np.testing.assert_allclose(found["bbox"], expected["bbox"], atol=1e-9)


def batches(truth, most=140):
    """Yield the detections in padded batches of three, resized to half."""
    images = STORED["ground_truth"]["images"]
    for start in range(0, 9, 3):
        shape = (3, most)
        boxes, scores = np.full((*shape, 4), np.nan, np.float32), np.zeros(shape)
        classes, valid = np.zeros(shape, np.int32), np.zeros(shape, bool)
        size, seen = np.ones((3, 2), np.int32), np.zeros(3, bool)
        for i, index in enumerate(range(start, min(start + 3, len(images)))):
            own_boxes, own_scores, own_classes = detections(index)
            count = len(own_scores)
            boxes[i, :count], scores[i, :count] = own_boxes / 2, own_scores
            classes[i, :count], valid[i, :count] = own_classes, True
            size[i], seen[i] = [images[index][side] for side in ("height", "width")], True
        batch = {"valid": seen, "index": np.arange(start, start + 3), "original_size": size}
        yield EvalOutput({}, (boxes, scores, classes, valid)), batch | {"size": size / 2}


def test_batches_and_processes(truth, monkeypatch):
    """Each of two processes has its own images; both return the figures of all."""
    one, first, second = CocoAP(truth), CocoAP(truth), CocoAP(truth)
    for number, (output, batch) in enumerate(batches(truth)):
        one.update(output, batch)
        (first if number % 2 else second).update(output, batch)
    expected = one.compute()
    assert_expected(one, expected)
    other_rows = np.concatenate(second._rows).tobytes()
    other_seen = np.array(second._seen, np.int64).tobytes()
    others = iter([other_rows, other_seen, b"null"])
    monkeypatch.setattr(metrics, "gather_bytes", lambda data: [data, next(others)])
    assert first.compute() == expected
    assert first.results() == one.results()
    np.testing.assert_array_equal(first.scores["box"].per_class, one.scores["box"].per_class)


def test_only_the_images_that_were_seen_count(truth):
    metric, whole = CocoAP(truth), CocoAP(truth)
    metric.add(2, *detections(2))
    whole.add(2, *detections(2))
    for index in {*range(len(truth.image_ids))} - {2}:
        whole.add(index, np.zeros((0, 4)), np.zeros(0), np.zeros(0, int))
    assert metric.compute()["box_ap"] > whole.compute()["box_ap"]


def test_no_detections(truth):
    metric = CocoAP(truth)
    metric.add(2, np.zeros((0, 4)), np.zeros(0), np.zeros(0, int))
    assert metric.compute()["box_ap"] == 0
    assert metric.results() == []
    empty = CocoAP(truth)
    index = next(i for i, image in enumerate(truth.image_ids) if not objects_of(truth, image))
    empty.add(index, *detections(index))
    figures = empty.compute()
    assert [*figures] == ["box_ap"]
    assert np.isnan(figures["box_ap"])


def objects_of(truth, image):
    return [o for o in truth.content["annotations"] if o["image_id"] == image]


def test_boxes_of_the_original_image():
    """The authors' values: sides scaled apart, clipped, empty boxes dropped."""
    boxes = [(10, 20, 50, 60), (0, 0, 160, 120), (159.9, 5, 160, 9), (30.5, 30.25, 30.5, 40)]
    expected = [(12.5, 40, 62.5, 120), (0, 0, 200, 240), (199.875, 10, 200, 18)]
    found = to_original(np.array(boxes), np.array([120, 160]), np.array([240, 200]))
    np.testing.assert_allclose(found[:3], expected, atol=1e-4)
    assert found[3, 0] == found[3, 2]
    beyond = to_original(np.array([(-5.0, -1, 170, 130)]), np.array([120, 160]), np.array([60, 80]))
    np.testing.assert_array_equal(beyond, [(0, 0, 80, 60)])


def test_results_scored_from_files(tmp_path):
    """Another reader of the two files gives the same figures: ids, empty boxes, areas and all."""
    file = data.write_coco(tmp_path, held_out=9)[1]
    path = tmp_path / "annotations/instances_val.json"
    extra = data.entry(100, 7, (5, 5, 0, 10)), data.entry(101, 3, (1, 1, 30, 30), iscrowd=1)
    file["annotations"] = [
        {"iscrowd": 0, **o, "id": number}
        for number, o in enumerate([*file["annotations"], *extra], start=1)
    ]
    path.write_text(json.dumps(file))
    dataset = open_coco(f"coco:{tmp_path}")
    metric, rng = CocoAP(dataset.truth), np.random.default_rng(0)
    for index in range(len(dataset.eval)):
        record = dataset.eval[index]
        boxes = record["boxes"].repeat(3, 0)
        boxes = boxes + rng.normal(scale=1.5, size=boxes.shape)
        classes = np.where(rng.random(len(boxes)) < 0.2, 2, record["classes"].repeat(3))
        metric.add(index, boxes, rng.random(len(boxes)), classes)
    figures = metric.compute()
    report.write(tmp_path, metric, dataset.class_names)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(path)
        evaluation = COCOeval(truth, truth.loadRes(str(tmp_path / "results.json")), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    expected = {f"box_{n}": x for n, x in zip(FIGURES, evaluation.stats, strict=True) if x >= 0}
    assert figures == pytest.approx(expected, abs=1e-12)
    assert 0.1 < figures["box_ap"] < 0.9
    rows = (tmp_path / "per_class.csv").read_text().splitlines()
    assert rows[0] == "class,objects,ap"
    assert [row.split(",")[0] for row in rows[1:]] == ["cat", "dog", "kite"]
    counted = [o["category_id"] for o in file["annotations"] if not o["iscrowd"]]
    assert [int(row.split(",")[1]) for row in rows[1:]] == [counted.count(i) for i in data.CLASSES]
    text = report.table(metric, dataset.class_names)
    assert f"{100 * figures['box_ap']:5.1f}  ap  " in text
    assert f"{100 * figures['box_ar100']:5.1f}  ar100" in text
    assert "    -  ap_large" in text
