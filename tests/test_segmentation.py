"""Segmentation through the trainer and the commands, on a small folder of label maps."""

import json
import re
import shutil

import commands
import helpers
import jax
import jax.export
import numpy as np
import pytest
import segmentation_data
from PIL import Image

import resnest_jax
from resnest_jax import recipe, runs
from resnest_jax.data.label_tables import voc_color
from resnest_jax.dry_run import compile_step
from resnest_jax.errors import InputError
from resnest_jax.models.inputs import normalize
from resnest_jax.tasks.segmentation import evaluate, predict
from resnest_jax.tasks.segmentation.draw import draw_batch
from resnest_jax.training.metric_writer import read_metrics
from resnest_jax.training.state import initial_state
from resnest_jax.weights.classifier import find_source
from resnest_jax.weights.conversion import convert
from resnest_jax.weights.exports import export_file
from resnest_jax.weights.formats import write_file
from resnest_jax.weights.segmentation import load_weights

pytestmark = pytest.mark.xdist_group("segmentation")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("masks")
    segmentation_data.write_folder(root)
    return root


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("segmentation")
    return workdir, runs.train(segmentation_data.tiny_config(data), workdir)


def loaded(workdir):
    """Return the model of a run and its variables."""
    found = load_weights(None, str(workdir))
    return found.model, found.variables


def pixels(path):
    """Return the pixels of an image file; those of a palette are its indices."""
    with Image.open(path) as image:
        return np.asarray(image)


def held_out(data):
    """Return the evaluation images and labels, 255 where there is none."""
    for image in sorted((data / "images/validation").iterdir()):
        labels = pixels(data / "annotations/validation" / image.name).astype(int)
        yield pixels(image), np.where(labels == 0, 255, labels - 1)


def scores(pairs):
    """Return pixel accuracy and mean IoU, counted class by class."""
    labels, found = (
        np.concatenate([array.ravel() for array in a]) for a in zip(*pairs, strict=True)
    )
    labels, found = labels[labels != 255], found[labels != 255]
    iou = [
        np.sum((labels == c) & (found == c)) / np.sum((labels == c) | (found == c))
        for c in range(len(segmentation_data.CLASSES))
    ]
    return np.mean(labels == found), np.mean(iou)


def test_it_learns_logs_and_keeps_its_classes(whole):
    workdir, summary = whole
    lines = helpers.losses_of(workdir)
    assert lines[-1]["loss"] < lines[0]["loss"]
    for line in lines:
        total = line["main_loss"] + 0.2 * line["auxiliary_loss"]
        assert line["loss"] == pytest.approx(total, rel=1e-5)
    assert summary["best_eval_miou"] >= summary["eval_miou"]
    classes = json.loads((workdir / "classes.json").read_text())["class_names"]
    assert tuple(classes) == segmentation_data.CLASSES
    assert (workdir / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_scores_against_numpy(whole, data):
    """Centred crops: the shorter side, 56 of 72 x 56, becomes 48."""
    workdir, summary = whole
    model, variables = loaded(workdir)
    size, images, maps = (48, 72 * 48 // 56), [], []
    for image, labels in held_out(data):
        image = Image.fromarray(image).resize(size, Image.Resampling.BILINEAR)
        labels = Image.fromarray(labels.astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
        images.append(np.asarray(image)[6:54])
        maps.append(np.asarray(labels)[6:54])
    logits = jax.jit(model.apply)(variables, normalize(np.stack(images)))
    accuracy, miou = scores(zip(maps, np.argmax(logits, -1), strict=True))
    assert summary["eval_pixel_accuracy"] == pytest.approx(accuracy, abs=1e-4)
    assert summary["eval_miou"] == pytest.approx(miou, abs=1e-4)


def test_resumed_it_is_the_same(whole, data, tmp_path):
    workdir, summary = whole
    shutil.copytree(workdir, tmp_path / "run")
    again = runs.train(segmentation_data.tiny_config(data), tmp_path / "run", from_step=4)
    assert {k: v for k, v in again.items() if k != "seconds"} == {
        k: v for k, v in summary.items() if k != "seconds"
    }
    for before, after in zip(read_metrics(workdir), read_metrics(tmp_path / "run"), strict=True):
        for name in ("step", "loss", "grad_norm", "eval_loss"):
            assert before.get(name) == after.get(name)


def test_evaluation_of_a_run(whole, tmp_path, capsys):
    workdir, summary = whole
    options = evaluate.Options(output=tmp_path / "out", batch_size=2)
    found = evaluate.run(load_weights(None, str(workdir)), options)
    assert found["step"] == 8
    for name in ("eval_miou", "eval_pixel_accuracy"):
        assert found[name] == summary[name]
    table = (tmp_path / "out/per_class.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in table] == ["class", *segmentation_data.CLASSES]
    for name in ("per_class.png", "confusion.png"):
        assert pixels(tmp_path / "out" / name).shape[0] > 100
    assert re.search(r"mean IoU [\d.]+ % of all classes", capsys.readouterr().err)


def test_multi_scale_scores_are_those_of_the_predictions(whole, data, tmp_path, capsys):
    workdir, _ = whole
    segmenter = load_weights(None, str(workdir))
    segmenter.config.evaluation.scales = (0.75, 1.5)
    options = evaluate.Options(multi_scale=True)
    found = evaluate.run(segmenter, options)
    assert "windows/s" in capsys.readouterr().err
    files = [str(data / "images/validation"), str(tmp_path / "none.png")]
    assert predict.run(segmenter, files, tmp_path / "out", multi_scale=True) == 1
    assert "none.png" in capsys.readouterr().err
    maps = [pixels(path) for path in sorted((tmp_path / "out").glob("*_labels.png"))]
    with Image.open(tmp_path / "out/00_labels.png") as image:
        assert image.getpalette()[:3] == [128, 0, 0]  # the colour of value 1 in VOC
    pairs = [(labels, one) for (_, labels), one in zip(held_out(data), maps, strict=True)]
    accuracy, miou = scores(pairs)
    assert found["eval_pixel_accuracy"] == pytest.approx(accuracy)
    assert found["eval_miou"] == pytest.approx(miou)
    first = (tmp_path / "out/class_shares.csv").read_text().splitlines()[1].split(",")[1:]
    shares = [np.mean(pairs[0][1] == c) for c in range(3)]
    np.testing.assert_allclose([float(share) for share in first], shares, atol=1e-6)
    assert pixels(tmp_path / "out/00_overlay.png").shape[0] > 500


def test_commands_know_the_task_of_a_run(whole, data, tmp_path):
    workdir, summary = whole
    result = commands.run("resnest_jax.evaluate", f"--workdir={workdir}")
    assert json.loads(result.stdout)["eval_miou"] == summary["eval_miou"]
    image = str(data / "images/validation/00.png")
    run = ("resnest_jax.predict", f"--weights={workdir}")
    assert commands.run(*run, f"--output={tmp_path}", image).returncode == 0
    assert pixels(tmp_path / "00_labels.png").shape == segmentation_data.SIZE
    commands.assert_one_line(commands.run(*run, image), "--output=DIRECTORY")
    for command, flag in (("evaluate", "tta"), ("predict", "explain")):
        refused = commands.run(f"resnest_jax.{command}", f"--weights={workdir}", f"--{flag}=flip")
        commands.assert_one_line(refused, f"--{flag} is not for segmentation")


@pytest.mark.parametrize("name", ["weights.safetensors", "weights"])
def test_converted_weights_are_the_run(whole, data, name, tmp_path):
    workdir, summary = whole
    convert(None, str(workdir), tmp_path / name)
    found = load_weights(None, str(tmp_path / name))
    run = load_weights(None, str(workdir))
    assert found.description == run.description
    jax.tree.map(np.testing.assert_array_equal, found.variables, run.variables)
    known = (segmentation_data.CLASSES, tuple(map(voc_color, (1, 2, 3))))
    assert (found.card.class_names, found.card.palette) == known
    assert (run.card.class_names, run.card.palette) == known
    assert (found.config.crop_size, found.config.augment.base_size) == (48, 64)
    if name == "weights":
        return
    result = commands.run(
        "resnest_jax.evaluate", f"--weights={tmp_path / name}", f"--dataset=masks:{data}"
    )
    figures = json.loads(result.stdout)
    assert figures["eval_miou"] == pytest.approx(summary["eval_miou"], abs=1e-6)
    assert "step" not in figures


def test_an_export_of_a_run_has_its_crop_size_and_names(whole, tmp_path):
    workdir, _ = whole
    name, size = tmp_path / "run.stablehlo", (48, 48)
    line = export_file(None, str(workdir), name, checkpoint="best", platforms=["cpu"])
    assert "uint8 images (B, 48, 48, 3) to logits (B, 48, 48, 3), for cpu" in line
    facts = json.loads((tmp_path / "run.json").read_text())
    assert (tuple(facts["class_names"]), facts["image_size"]) == (segmentation_data.CLASSES, 48)
    found = load_weights(None, str(workdir), "best")
    images = np.random.default_rng(0).integers(0, 256, (2, *size, 3), np.uint8)
    logits = jax.export.deserialize(bytearray(name.read_bytes())).call(images)
    expected = jax.jit(found.model.apply)(found.variables, normalize(images))
    np.testing.assert_allclose(logits, expected, atol=1e-5 * np.abs(expected).max())


def test_runs_without_colours_and_a_class_named_file(whole, data, tmp_path):
    workdir = shutil.copytree(whole[0], tmp_path / "run")
    names = ["file", "_file", "wall"]
    (workdir / "classes.json").write_text(json.dumps({"class_names": names}))
    image = str(data / "images/validation/00.png")
    assert predict.run(load_weights(None, str(workdir)), [image], tmp_path / "out") == 0
    header, row = (tmp_path / "out/class_shares.csv").read_text().splitlines()
    assert header == "__file,file,_file,wall"
    assert row.startswith(f"{image},")
    with Image.open(tmp_path / "out/00_labels.png") as labels:
        assert labels.getpalette()[:3] == list(voc_color(1))


def test_predictions_at_one_scale_and_equal_names(whole, data, tmp_path):
    workdir, _ = whole
    files = [str(data / split / "00.png") for split in ("images/validation", "images/training")]
    segmenter = load_weights(None, str(workdir))
    with pytest.raises(InputError, match="the same name"):
        predict.run(segmenter, files, tmp_path)
    assert predict.run(segmenter, files[:1], tmp_path) == 0
    assert pixels(tmp_path / "00_labels.png").shape == segmentation_data.SIZE


def test_initial_weights(whole, data, tmp_path, capsys):
    """Of a run, of the authors' entries, wrapped or not, of a backbone, with and without heads."""
    workdir, _ = whole
    model, variables = loaded(workdir)
    entries = {f"module.{k}": v for k, v in resnest_jax.to_torch(variables, model).items()}
    write_file(tmp_path / "all.safetensors", entries)
    backbone = {
        k.removeprefix("module.pretrained."): v for k, v in entries.items() if "pretrained." in k
    }
    write_file(tmp_path / "backbone.safetensors", backbone)
    cases = [
        (str(workdir), {}, ""),
        (str(tmp_path / "all.safetensors"), {}, ""),
        (str(tmp_path / "all.safetensors"), {"model__auxiliary": False}, ""),
        (str(tmp_path / "backbone.safetensors"), {}, "head, auxiliary"),
        (str(workdir), {"model__name": "deeplabv3"}, "head, auxiliary"),
        (
            str(tmp_path / "all.safetensors"),
            {"model__name": "deeplabv3", "model__auxiliary": False},
            "head",
        ),
    ]
    for weights, overrides, new in cases:
        overrides["pretrained__weights"] = weights
        run = recipe.build(segmentation_data.tiny_config(data, **overrides))
        assert run.pretrained is not None
        initial = run.pretrained()
        assert capsys.readouterr().out.endswith(f"new: {new or 'none'}\n")
        for name, part in initial["params"].items():
            jax.tree.map(np.testing.assert_array_equal, part, variables["params"][name])
    state = initial_state(run)
    stem = state.params["backbone"]["stem"]["conv1"]["kernel"]
    np.testing.assert_array_equal(stem, variables["params"]["backbone"]["stem"]["conv1"]["kernel"])
    assert state.params["head"]["classifier"]["conv2"]["kernel"].shape[-1] == 3


def test_damaged_initial_weights_are_refused(whole, data, tmp_path):
    workdir, _ = whole
    model, variables = loaded(workdir)
    entries = resnest_jax.to_torch(variables, model)
    del entries["head.conv5.0.weight"]
    write_file(tmp_path / "w.safetensors", entries)
    weights = {"pretrained__weights": str(tmp_path / "w.safetensors")}
    run = recipe.build(segmentation_data.tiny_config(data, **weights))
    with pytest.raises(InputError, match=r"missing: head.conv5.0.weight"):
        run.pretrained()
    other = {"pretrained__weights": str(workdir), "model__backbone": "resnest26"}
    with pytest.raises(InputError, match="have the backbone resnest14, not resnest26"):
        recipe.build(segmentation_data.tiny_config(data, **other)).pretrained()
    for load in (resnest_jax.load_pretrained, find_source):
        with pytest.raises(InputError, match="are of fcn, not of a classifier"):
            load(None, str(workdir))


@pytest.mark.parametrize("split", ["train", "eval"])
def test_preview(data, tmp_path, split):
    run = recipe.build(segmentation_data.tiny_config(data))
    draw_batch(run, tmp_path / "batch.png", split)
    assert pixels(tmp_path / "batch.png").shape[1] > 500


def test_the_step_compiles_for_the_shapes_of_the_batches(data):
    """With a frozen stem and stages: the dry run needs no data for it."""
    overrides = {"model__frozen_stages": 3, "batch_size": 16}
    run = recipe.build(segmentation_data.tiny_config(data, **overrides))
    (spec,) = run.batches.train_specs()
    assert {name: leaf.shape for name, leaf in spec.items()} == {
        "image": (16, 48, 48, 3),
        "labels": (16, 48, 48),
    }
    batch = next(run.batches.train(0))
    assert {name: (a.shape, a.dtype) for name, a in batch.items()} == {
        name: (leaf.shape, leaf.dtype) for name, leaf in spec.items()
    }
    assert set(np.unique(batch["labels"])) <= {0, 1, 2, 255}
    compile_step(run)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model__name": "resnest50"}, "model.name must be one of .*; got 'resnest50'"),
        ({"model__backbone": "resnest15"}, "unknown model 'resnest15'"),
        ({"model__num_classes": 4}, "model.num_classes is 4, but .* has 3 classes; leave it out"),
        ({"model__aspp_dropout": 1.0}, r"aspp_dropout must be in \[0, 1\); got 1.0"),
        ({"crop_size": 31}, "crop_size must be at least 32 pixels; got 31"),
        ({"augment__base_size": 0}, "augment.base_size must be a positive .*; got 0"),
        ({"augment__scale": (2.0, 0.5)}, r"augment.scale must be .*; got \(2.0, 0.5\)"),
        ({"augment__scale": (1.0,)}, r"augment.scale must be .*; got \(1.0,\)"),
        ({"augment__scale": (0.001, 2.0)}, "must be at least 1 pixel"),
        ({"evaluation__scales": ()}, r"evaluation.scales must be .*; got \(\)"),
        ({"loss__auxiliary_weight": -1.0}, "loss.auxiliary_weight must not be negative"),
        ({"loss__class_weights": (("moon", 2.0),)}, "has the class 'moon'; the data set has grass"),
        ({"loss__class_weights": ("even",)}, "must be 'balanced', or pairs .*; got 'even'"),
        ({"parallel__batch_norm": "device"}, "batch_size 8 gives 1 image to each of the 8 groups"),
        ({"batch_size": 24}, "batch_size 24 must not exceed the 16 training images"),
        ({"pretrained__train": "head"}, "needs model.norm 'frozen'"),
        ({"pretrained__weights": "nowhere.pth"}, "pretrained.weights: there is no .*nowhere.pth"),
        ({"pretrained__weights": "published", "model__backbone": "resnet18"}, "unknown|none of"),
        ({"dataset": "sklearn_digits"}, "expected scenes or one of ade20k:PATH"),
        ({"dataset": ""}, "dataset is missing; set it to scenes, ade20k:PATH, .* or masks:PATH"),
        ({"eval_split": "extra"}, "eval_split 'extra'"),
    ],
)
def test_bad_input_is_named(data, overrides, message, tmp_path):
    with pytest.raises(InputError, match=message) as error:
        recipe.build(segmentation_data.tiny_config(data, **overrides), tmp_path)
    assert "\n" not in str(error.value)


def test_the_head_alone(data):
    overrides = {"pretrained__train": "head", "model__norm": "frozen"}
    overrides["parallel__batch_norm"] = "device"
    run = recipe.build(segmentation_data.tiny_config(data, **overrides))
    assert run.options.freeze == "^backbone/"


def test_class_weights_are_in_the_order_of_the_classes(data):
    weights = (("wall", 3.0), ("grass", 0.5))
    run = recipe.build(segmentation_data.tiny_config(data, loss__class_weights=weights))
    assert run.task.class_weights == (0.5, 1.0, 3.0)


def test_balanced_weights_are_inverse_to_the_pixels(data):
    run = recipe.build(segmentation_data.tiny_config(data, loss__class_weights=("balanced",)))
    maps = np.stack([pixels(path) for path in (data / "annotations/training").iterdir()])
    counts = np.array([(maps == value).sum() for value in (1, 2, 3)])
    np.testing.assert_allclose(run.task.class_weights, counts.sum() / (3 * counts), rtol=1e-6)
