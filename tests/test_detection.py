"""Detection through the trainer and the commands, on a small folder in COCO's form."""

import contextlib
import dataclasses
import io
import json
import re
import shutil

import commands
import detection_data as data
import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import resnest_jax
from resnest_jax import dry_run, recipe, runs
from resnest_jax.config import complete, flatten
from resnest_jax.errors import InputError
from resnest_jax.models.inputs import normalize_padded
from resnest_jax.tasks.detection import evaluate, predict
from resnest_jax.tasks.detection.canvases import make_canvases
from resnest_jax.tasks.detection.draw import draw_batch
from resnest_jax.tasks.detection.metrics import FIGURES
from resnest_jax.training.collectives import collectives
from resnest_jax.training.optimizer import trainable
from resnest_jax.weights.conversion import convert
from resnest_jax.weights.detection import load_weights
from resnest_jax.weights.recognition import find_task

pytestmark = [pytest.mark.xdist_group("detection"), pytest.mark.usefixtures("compiled_once")]

VAL = "annotations/instances_val.json"
LOSSES = ("loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("boxes")
    data.write_coco(root, train=24)
    return root


@pytest.fixture(scope="module")
def whole(root, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("detection")
    return workdir, runs.train(data.tiny_config(root), workdir)


def test_it_logs_every_loss_and_keeps_its_classes(whole):
    workdir, summary = whole
    lines = helpers.losses_of(workdir)
    assert len(lines) == 6
    for line in lines:
        assert line["loss"] == pytest.approx(sum(line[name] for name in LOSSES), rel=1e-5)
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert {"eval_box_ap", "eval_box_ap50", "best_eval_box_ap"} <= summary.keys()
    classes = json.loads((workdir / "classes.json").read_text())["class_names"]
    assert classes == [*data.CLASSES.values()]
    assert (workdir / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_resumed_it_is_the_same(whole, root, tmp_path):
    """Bit for bit, with batches of two canvases."""
    workdir, summary = whole
    assert len(recipe.build(data.tiny_config(root)).batches.train_specs()) == 2
    shutil.copytree(workdir, tmp_path / "run")
    again = runs.train(data.tiny_config(root), tmp_path / "run", from_step=3)
    assert again | {"seconds": 0} == summary | {"seconds": 0}
    before, after = helpers.losses_of(workdir), helpers.losses_of(tmp_path / "run")
    for name in ("step", "loss", "grad_norm", *LOSSES):
        assert [line[name] for line in before] == [line[name] for line in after]


@pytest.fixture(scope="module")
def evaluated(whole, tmp_path_factory):
    """The figures of the run, and the folder of its results."""
    output = tmp_path_factory.mktemp("evaluated") / "out"
    options = evaluate.Options(output=output, batch_size=5)
    return evaluate.run(load_weights(None, str(whole[0])), options), output


def test_evaluation_of_a_run_against_pycocotools(whole, evaluated, root):
    """The results that it writes have the figures that it returns."""
    (_, summary), (found, output) = whole, evaluated
    assert found["step"] == 6
    assert found["eval_box_ap"] == summary["eval_box_ap"]
    rows = (output / "per_class.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["class", *data.CLASSES.values()]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(root / VAL)
        results = truth.loadRes(str(output / "results.json"))
        expected = COCOeval(truth, results, "bbox")
        expected.evaluate()
        expected.accumulate()
        expected.summarize()
    for name, value in zip(FIGURES, expected.stats, strict=True):
        assert found.get(f"eval_box_{name}", -1) == pytest.approx(value), name


def test_converted_weights_are_evaluated_as_the_run(whole, evaluated, root, tmp_path):
    """With its classes and the sizes of its test images, and without a training split."""
    convert(None, str(whole[0]), tmp_path / "boxes.safetensors")
    data.write_split(tmp_path, "val", json.loads((root / VAL).read_text()))
    detector = load_weights(None, str(tmp_path / "boxes.safetensors"))
    assert detector.class_names == tuple(data.CLASSES.values())
    options = evaluate.Options(dataset=f"coco:{tmp_path}", split="val", batch_size=5)
    assert evaluate.run(detector, options) == {k: v for k, v in evaluated[0].items() if k != "step"}


def test_predictions_are_those_of_the_evaluation(whole, evaluated, root, tmp_path, capsys):
    """Of the images as files, with one that cannot be read."""
    workdir, _ = whole
    detector = load_weights(None, str(workdir))
    files = [str(root / "val"), str(tmp_path / "none.png")]
    assert predict.run(detector, files, tmp_path / "out", threshold=0.0) == 1
    assert "none.png" in capsys.readouterr().err
    images = json.loads((tmp_path / "out/detections.json").read_text())["images"]
    for number, image in zip(range(100, 105), images, strict=True):
        assert image["file"] == str(root / f"val/{number}.png")
        with Image.open(tmp_path / f"out/{number}_boxes.png") as picture:
            assert picture.width / picture.height == image["width"] / image["height"]
    assert_same_detections(tmp_path / "out", evaluated[1], range(100, 105))


def assert_same_detections(predicted, evaluated, numbers):
    """Check that all results of an evaluation of some images are among the predictions."""
    results = json.loads((evaluated / "results.json").read_text())
    images = json.loads((predicted / "detections.json").read_text())["images"]
    names = {name: category for category, name in data.CLASSES.items()}
    for number, image in zip(numbers, images, strict=True):
        expected = [entry for entry in results if entry["image_id"] == number]
        assert len(image["detections"]) >= len(expected) > 0
        for entry in expected:
            left, top, width, height = entry["bbox"]
            assert any(
                names[found["class"]] == entry["category_id"]
                and found["score"] == pytest.approx(entry["score"], abs=1e-5)
                and found["box"] == pytest.approx([left, top, left + width, top + height], abs=0.03)
                for found in image["detections"]
            ), entry


def test_multi_scale(whole, evaluated, root, tmp_path, capsys):
    """A view as in training gives the figures of training; predictions are those of evaluation."""
    detector = load_weights(None, str(whole[0]))
    config = flatten(detector.config) | {"evaluation.view_sides": (32,)}
    views = {True: config | {"evaluation.view_sides": (24,)}, False: config | {"data.flip": False}}
    of = {flip: dataclasses.replace(detector, config=complete(views[flip])) for flip in views}
    one = evaluate.run(of[False], evaluate.Options(multi_scale=True))
    assert one == pytest.approx(evaluated[0], abs=1e-6)
    options = evaluate.Options(multi_scale=True, output=tmp_path / "out")
    found = evaluate.run(of[True], options)
    assert found.keys() == one.keys()
    assert found != one
    lines = [line for line in capsys.readouterr().err.splitlines() if "views/s" in line]
    rates = [[float(word) for word in line.split() if word[0].isdigit()] for line in lines]
    assert [views == pytest.approx(images, rel=0.01) for images, views in rates] == [True, False]
    file = str(root / "val/100.png")
    assert predict.run(of[True], [file], tmp_path / "seen", threshold=0.0, multi_scale=True) == 0
    assert_same_detections(tmp_path / "seen", tmp_path / "out", [100])


def test_images_are_normalized_as_the_authors_do_and_padded_with_zeros():
    images = np.full((2, 4, 6, 3), 255, np.uint8)
    found = np.asarray(normalize_padded(images, np.array([[2, 6], [4, 3]])))
    inside = np.zeros((2, 4, 6), bool)
    inside[0, :2], inside[1, :, :3] = True, True
    expected = [(255 - 123.68) / 58.393, (255 - 116.779) / 57.12, (255 - 103.939) / 57.375]
    np.testing.assert_allclose(found[inside], np.tile(expected, (24, 1)), rtol=1e-6)
    assert not found[~inside].any()


RCNNS = ("faster_rcnn", "mask_rcnn", "cascade_rcnn", "cascade_mask_rcnn")


@pytest.mark.parametrize("backbone", ["resnest50", "resnest101"])
@pytest.mark.parametrize("name", RCNNS)
def test_recipes_of_coco(name, backbone, root):
    """Schedule, sizes, decay and frozen parameters are those of the authors' 1x."""
    config = helpers.load_config("coco", f"{name}_{backbone}")
    config.dataset, config.train_split, config.eval_split = f"coco:{root}", "train", "val"
    config.batch_size, config.loader.workers = 8, 0
    config.data.canvases = ()
    run = recipe.build(config)
    assert run.options.total_steps == 90_000
    rates = [run.schedule(step) for step in (0, 500, 1000, 59_999, 60_000, 80_000)]
    rates = np.array(rates) * 16 / config.batch_size
    np.testing.assert_allclose(rates, [2e-5, 0.01001, 0.02, 0.02, 2e-3, 2e-4], rtol=1e-4)
    model = run.task.model
    assert (model.features, model.hidden) == (256, 1024)
    assert model.anchor_sizes == (32, 64, 128, 256, 512)
    assert (model.rpn_samples, model.roi_samples, model.detections) == (256, 512, 100)
    assert (model.train_candidates, model.test_candidates) == (2000, 1000)
    is_cascade, has_masks = name.startswith("cascade"), "mask" in name
    assert model.cascade_thresholds == ((0.6, 0.7) if is_cascade else ())
    assert (model.train_proposals, model.test_proposals) == (2000 if is_cascade else 1000, 1000)
    assert model.mask_convolutions == (4 if has_masks else 0)
    assert ["masks" in spec for spec in run.batches.train_specs()] == [has_masks] * 2
    sides = (*range(640, 801, 32),) if has_masks else (640, 800)
    kind = "choice" if has_masks else "range"
    assert (config.data.short_sides, config.data.short_side_sampling) == (sides, kind)
    if f"{name}_{backbone}" == "faster_rcnn_resnest50":
        params = run.abstract_variables["params"]
        trained = trainable(params, run.options.freeze)
        leaves = zip(jax.tree.leaves(params), jax.tree.leaves(trained), strict=True)
        frozen = [leaf.size for leaf, is_trained in leaves if not is_trained]
        assert sum(frozen) == 260_416 + 3_648  # the second are of norms, buffers in detectron2


def test_recipe_with_tricks(root):
    """As the authors' mask_cascade_rcnn_ResNeSt_200_FPN_syncBN_all_tricks_3x."""
    config = helpers.load_config("coco", "cascade_mask_rcnn_resnest200_tricks")
    config.dataset, config.train_split, config.eval_split = f"coco:{root}", "train", "val"
    config.batch_size, config.loader.workers = 8, 0
    run = recipe.build(config)
    assert run.options.total_steps == 270_000
    rates = [run.schedule(step) for step in (1000, 239_999, 240_000, 255_000)]
    np.testing.assert_allclose(np.array(rates) * 2, [0.02, 0.02, 2e-3, 2e-4], rtol=1e-4)
    model, data_of = run.task.model, config.data
    assert (model.mask_convolutions, model.train_proposals) == (8, 2000)
    assert model.backbone.stage_sizes == (3, 24, 36, 3)
    assert (data_of.short_sides, data_of.short_side_sampling) == ((640, 864), "range")
    assert (data_of.long_side, data_of.crop) == (1440, 0.9)
    assert (config.evaluation.short_side, config.evaluation.long_side) == (800, 1333)
    every = np.array([(height, 300) for height in range(60, 1500)])
    every = np.concatenate((every, every[:, ::-1]))
    make_canvases(every, 864, 1440, data_of.canvases, data_of.crop)  # raises if they hold not all


@pytest.mark.parametrize("name", RCNNS)
def test_recipes_for_a_folder(name, root):
    config = helpers.load_config("detect", name)
    config.dataset, config.batch_size, config.loader.workers = f"coco:{root}", 8, 0
    model = recipe.build(config).task.model
    assert model.train_proposals == (2000 if name.startswith("cascade") else 1000)
    assert (model.mask_convolutions > 0) == ("mask" in name)


def test_what_decays_is_what_the_authors_decay(root):
    """All but scale and bias of norms."""
    decay = re.compile(helpers.load_config("detect").optimizer.decay)
    params = recipe.build(data.tiny_config(root)).abstract_variables["params"]
    for path, _ in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        module = name.split("/")[-2]
        is_norm = "bn" in module
        assert bool(decay.search(name)) != is_norm, name


def test_new_variables_are_those_of_detection(root):
    run = recipe.build(data.tiny_config(root))
    images = jnp.zeros((1, 64, 64, 3))
    assert run.abstract_variables == jax.eval_shape(run.task.model.init, jax.random.key(0), images)


def test_a_run_as_initial_weights(whole, root, tmp_path, capsys):
    workdir, _ = whole
    config = data.tiny_config(root, pretrained__weights=str(workdir))
    loaded = recipe.build(config, tmp_path).pretrained()
    assert {*loaded["params"]} == {"backbone", "fpn", "rpn", "box_head", "box_predictor"}
    assert "new: none" in capsys.readouterr().out


def test_devices_exchange_no_feature_map(root):
    """Scores of anchors are gathered; gradients and batch statistics are summed."""
    run = recipe.build(data.tiny_config(root))
    program = dry_run.compile_step(run)[0].as_text()
    assert "u8[1,32,64,3]" in program  # eight devices have an image each
    shapes = data.exchanged_shapes(program)
    assert shapes
    assert all(len(shape) <= 2 for shape in shapes), shapes
    summed = sum(found.bytes for found in collectives(program) if found.kind == "all-reduce")
    params, statistics = (
        sum(4 * leaf.size for leaf in jax.tree.leaves(run.abstract_variables[name]))
        for name in ("params", "batch_stats")
    )
    assert params <= summed <= params + 6 * statistics  # of which the backward pass has sums too


def test_dry_run_tells_data_steps_memory_and_rate(root, tmp_path):
    report = dry_run.dry_run(data.tiny_config(root), tmp_path / "run")
    assert [report[key] for key in ("train_images", "eval_images", "classes")] == [24, 5, 3]
    assert (report["steps"], report["steps_per_epoch"]) == (6, 3)
    assert report["needed_gib"] < report["available_gib"]
    assert report["input_images_per_second"] > 0
    assert report["step_images_per_second"] > 0


def test_dry_run_compiles_the_largest_canvas(root):
    run = recipe.build(data.tiny_config(root, data__canvases=((32, 64), (64, 64))))
    assert len(run.batches.train_specs()) == 2
    assert dry_run.abstract_batch(run)["image"].shape == (8, 64, 64, 3)


def test_preview_of_boxes(root, tmp_path):
    run = recipe.build(data.tiny_config(root))
    for split in ("train", "eval"):
        draw_batch(run, tmp_path / f"{split}.png", split)
        with Image.open(tmp_path / f"{split}.png") as picture:
            assert picture.width > 500


WRONG = {
    "model.name": ("retinanet", "model.name must be one of"),
    "model.features": (0, "features must be an integer >= 1; got 0"),
    "model.anchor_sizes": ((8, 16), "anchor_sizes must be five positive numbers"),
    "model.score_threshold": (1.5, r"score_threshold must be in \[0, 1\]; got 1.5"),
    "model.output_stride": (16, "output_stride=32"),
    "model.num_classes": (7, "model.num_classes is 7, but coco:.* has 3 classes"),
    "parallel.batch_norm": ("device", "gives 1 image to each of the 8 groups"),
    "data.max_objects": (0, "data.max_objects must be at least 1; got 0"),
    "data.canvases": (((32, 33),), "multiples of 32"),
    "dataset": ("masks:here", "expected coco:PATH"),
    "pretrained.weights": ("missing", "pretrained.weights: there is no .*missing"),
}


@pytest.mark.parametrize("key", WRONG)
def test_wrong_keys_are_named(key, root, tmp_path):
    value, message = WRONG[key]
    with pytest.raises(InputError, match=message):
        recipe.build(data.tiny_config(root, **{key.replace(".", "__"): value}), tmp_path)


def test_bad_input_of_the_commands_is_one_line(whole, tmp_path):
    workdir, _ = whole
    run = f"--weights={workdir}"
    for command, arguments, words in (
        ("predict", (run, "--tta=flip", "--output=out", "x.png"), ("--tta", "detection")),
        ("evaluate", (run, "--dataset=coco:missing"), ("missing",)),
        ("evaluate", (run, "--backbone=resnest50"), ("resnet50", "resnest50")),
    ):
        result = commands.run(f"resnest_jax.{command}", *arguments, cwd=tmp_path)
        commands.assert_one_line(result, *words)


def test_what_a_detector_is_not_for(whole, tmp_path):
    workdir, _ = whole
    assert find_task(None, str(workdir)) == find_task("faster_rcnn", None) == "detection"
    with pytest.raises(
        InputError, match=r"of faster_rcnn, not of a classifier; .* convert, export"
    ):
        resnest_jax.load_pretrained(None, workdir)
    with pytest.raises(InputError, match="cannot be fetched"):
        load_weights("faster_rcnn", None)
