"""Cascade Mask R-CNN, which has all that the four models have, through the trainer."""

import json
import shutil

import detection_data as data
import helpers
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from resnest_jax import dry_run, recipe, runs
from resnest_jax.config import best_metric
from resnest_jax.tasks.detection import evaluate, predict
from resnest_jax.weights.detection import load_weights

pytestmark = [
    pytest.mark.xdist_group("detection masks"),
    pytest.mark.usefixtures("compiled_once"),
]

STAGES = [f"loss_{name}_stage{stage}" for name in ("cls", "box_reg") for stage in range(2)]
LOSSES = ("loss_rpn_cls", "loss_rpn_loc", *STAGES, "loss_mask")


def config_of(root, **overrides):
    """Return a run of two stages and one canvas, to compile less."""
    values = {
        "model__name": "cascade_mask_rcnn",
        "model__mask_convolutions": 1,
        "model__cascade_thresholds": (0.6,),
        "data__canvases": ((64, 64),),
        "steps": 4,
        "eval_every_steps": 2,
    }
    return data.tiny_config(root, **values | overrides)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("masks")
    data.write_coco(root, train=24)
    return root


@pytest.fixture(scope="module")
def whole(root, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("cascade")
    return workdir, runs.train(config_of(root), workdir)


def test_it_logs_every_loss_and_the_figures_of_boxes_and_masks(whole, root):
    workdir, summary = whole
    lines = helpers.losses_of(workdir)
    assert len(lines) == 4
    for line in lines:
        assert {name for name in line if name.startswith("loss_")} == {*LOSSES}
        assert line["loss"] == pytest.approx(sum(line[name] for name in LOSSES), rel=1e-5)
        assert line["loss_mask"] > 0
    figures = {f"eval_{kind}_{name}" for kind in ("box", "mask") for name in ("ap", "ap50")}
    assert {*figures, "best_eval_mask_ap"} <= summary.keys()
    task = recipe.build(config_of(root)).task
    assert task.best_metric == best_metric(config_of(root)) == "eval_mask_ap"
    assert {*task.curves["loss"]} == {"loss", *LOSSES}
    assert {*task.curves["evaluation (%)"]} == figures


def test_resumed_it_is_the_same(whole, root, tmp_path):
    """Bit for bit."""
    workdir, summary = whole
    shutil.copytree(workdir, tmp_path / "run")
    again = runs.train(config_of(root), tmp_path / "run", from_step=2)
    assert again | {"seconds": 0} == summary | {"seconds": 0}
    before, after = helpers.losses_of(workdir), helpers.losses_of(tmp_path / "run")
    for name in ("step", "loss", "grad_norm", *LOSSES):
        assert [line[name] for line in before] == [line[name] for line in after]


def test_devices_exchange_no_mask(root):
    """Each has those of its own image."""
    program = dry_run.compile_step(recipe.build(config_of(root)))[0].as_text()
    assert "u8[1,4,64,8]" in program
    shapes = data.exchanged_shapes(program)
    assert shapes
    assert all(len(shape) <= 2 for shape in shapes), shapes


def test_evaluation_on_boxes_alone(whole, root, tmp_path, capsys):
    """The figures of the boxes are those of the run, and a line says that there are no others."""
    workdir, summary = whole
    file = json.loads((root / "annotations/instances_val.json").read_text())
    for entry in file["annotations"]:
        del entry["segmentation"]
    data.write_split(tmp_path, "val", file)
    options = evaluate.Options(dataset=f"coco:{tmp_path}", split="val", batch_size=8)
    found = evaluate.run(load_weights(None, str(workdir)), options)
    assert "has no segmentation: only the boxes are evaluated" in capsys.readouterr().err
    assert not any("mask" in name for name in found if name != "model")
    boxes = {name: value for name, value in found.items() if name.startswith("eval_box")}
    assert boxes == pytest.approx({name: summary[name] for name in boxes})


def test_predictions_are_those_of_the_evaluation(whole, root, tmp_path):
    """Masks and label maps too."""
    detector = load_weights(None, str(whole[0]))
    evaluate.run(detector, evaluate.Options(output=tmp_path, batch_size=8))
    results = json.loads((tmp_path / "results.json").read_text())
    (tmp_path / "one").mkdir()
    shutil.copy(root / "val/100.png", tmp_path / "one")
    predict.run(detector, [str(tmp_path / "one")], tmp_path, threshold=0.0)
    (image,) = json.loads((tmp_path / "detections.json").read_text())["images"]
    size, expected = [image["height"], image["width"]], [e for e in results if e["image_id"] == 100]
    assert len(image["detections"]) >= len(expected) > 0
    for entry in expected:  # in any order: scores of a network that is hardly trained are alike
        left, top, width, height = entry["bbox"]
        assert any(
            found["box"] == pytest.approx([left, top, left + width, top + height], abs=0.03)
            and found["mask"]["size"] == size
            and coco.iou([found["mask"]], [entry["segmentation"]], [False]) > 0.9
            for found in image["detections"]
        ), entry
    covered = coco.decode(coco.merge([found["mask"] for found in image["detections"]]))
    with Image.open(tmp_path / "100_instances.png") as labels:
        np.testing.assert_array_equal(np.asarray(labels) > 0, covered > 0)


def test_dry_run_tells_the_memory_of_the_masks(root):
    """A bit for each pixel of a canvas and each object."""
    found = dry_run.batch_memory(recipe.build(config_of(root, data__max_objects=400)))
    assert found["masks"] == pytest.approx(8 * 400 * 64 * 64 / 8 / 2**20, abs=0.01)
    assert found["image"] == pytest.approx(8 * 64 * 64 * 3 / 2**20, abs=0.01)
