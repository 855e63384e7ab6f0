"""A run knows its classes, and they travel; every command takes any checkpoint."""

import json
import shutil

import golden
import jax
import numpy as np
import pytest
import safetensors.numpy

import resnest_jax
from resnest_jax import recipe, runs
from resnest_jax.data.imagenet import imagenet_classes, readable, synsets
from resnest_jax.errors import InputError, StorageError
from resnest_jax.tasks.classification import predict
from resnest_jax.training.checksums import write_checksums
from resnest_jax.training.variables import restore_variables
from resnest_jax.weights.card import FILE, Card, check_class_names, read_card, write_card
from resnest_jax.weights.classifier import find_source
from resnest_jax.weights.conversion import convert
from resnest_jax.weights.exports import export_file
from resnest_jax.workdir import load_config

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
MODEL = "resnest14_fast_2s1x64d"


@pytest.fixture
def named_run(tmp_path):
    """Make a run of ten named classes at 32 pixels, whose best checkpoint is the first, 6."""
    workdir = shutil.copytree(golden.FOLDER / "run_v0", tmp_path / "run")
    metrics = workdir / "checkpoints" / "12" / "metrics" / "metrics"
    metrics.write_text(json.dumps({"eval_loss": 9.0, "eval_top1": 0.0, "eval_top5": 0.0}))
    write_card(workdir, Card(NAMES))
    return workdir


def stored(workdir, step):
    return restore_variables(workdir / "checkpoints" / str(step) / "state")["params"]


def assert_trees_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_the_classes_of_published_models_are_imagenets():
    assert len(synsets()) == len(set(synsets())) == 1000
    assert list(synsets()) == sorted(synsets())
    assert readable(("n02099601", "cat")) == ["golden retriever", "cat"]
    assert readable(synsets()) == imagenet_classes()


@pytest.mark.parametrize(("which", "step"), [("last", 12), ("best", 6), ("6", 6), ("12", 12)])
def test_a_checkpoint_is_that_of_the_step(which, step, named_run, tmp_path):
    source = find_source(None, str(named_run), which)
    assert (source.name, source.step) == (MODEL, step)
    assert source.card == Card(NAMES, 32, "whole")
    _, variables = resnest_jax.load_pretrained(None, named_run, checkpoint=which)
    assert_trees_equal(variables["params"], stored(named_run, step))


def test_other_checkpoints_are_refused(named_run, tmp_path):
    for call in (find_source, lambda *args: resnest_jax.load_pretrained(*args[:2], checkpoint="7")):
        with pytest.raises(InputError, match=r"no checkpoint '7' in .*; there are steps \[6, 12\]"):
            call(None, str(named_run), "7")
    convert(None, str(named_run), tmp_path / "out")
    with pytest.raises(InputError, match=r"'best': only a run has checkpoints; weights .*out"):
        find_source(None, str(tmp_path / "out"), "best")
    with pytest.raises(InputError, match="'6': only a run has checkpoints; weights published"):
        find_source("resnest50", None, "6")


def test_of_a_damaged_last_checkpoint_the_one_before_is_taken(named_run, capsys):
    for step in ("6", "12"):
        write_checksums(named_run / "checkpoints" / step)
    damaged = named_run / "checkpoints" / "12" / "state" / "manifest.ocdbt"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert find_source(None, str(named_run)).step == 6
    assert "checkpoint 12 is damaged: state/manifest.ocdbt" in capsys.readouterr().err
    with pytest.raises(StorageError, match=r"no checkpoint '12' in .* is complete"):
        find_source(None, str(named_run), "12")


@pytest.mark.parametrize("output", ["out", "out.safetensors"])
def test_what_is_known_travels_with_converted_weights(output, named_run, tmp_path):
    output = tmp_path / output
    convert(None, str(named_run), output, checkpoint="best")
    source = find_source(None, str(output))
    assert (source.name, source.card) == (MODEL, Card(NAMES, 32, "whole"))
    _, variables = resnest_jax.load_pretrained(None, output)
    assert_trees_equal(variables["params"], stored(named_run, 6))


def test_weights_of_unknown_origin_have_numbers_for_names(tmp_path, monkeypatch):
    model, variables = golden.build("resnest14", {"planes": (8, 8, 8, 8), "stem_width": 4})
    path, named = tmp_path / "some.safetensors", tmp_path / "named.safetensors"
    resnest_jax.save_weights(variables, model, path)
    assert find_source("resnest14", str(path)).card == Card(image_size=224)
    resnest_jax.save_weights(variables, model, named, class_names=synsets())
    assert find_source("resnest14", str(named)).card.class_names == synsets()
    assert safetensors.numpy.load_file(named).keys() == safetensors.numpy.load_file(path).keys()

    def load(name, source, *, checkpoint):
        return model, variables

    monkeypatch.setattr("resnest_jax.weights.classifier.load_pretrained", load)
    assert predict.load("resnest14", str(path)).class_names[17] == "class 17"
    assert predict.load("resnest14", str(named)).class_names[17] == "jay"
    resnest_jax.save_weights(variables, model, named, class_names=NAMES)
    with pytest.raises(InputError, match="have 1000 classes, but 10 names"):
        predict.load("resnest14", str(named))


def test_names_can_be_given(named_run, tmp_path):
    (tmp_path / "names.txt").write_text("\n".join(reversed(NAMES)))
    convert(None, str(named_run), tmp_path / "out", class_names=str(tmp_path / "names.txt"))
    assert read_card(tmp_path / "out").class_names == NAMES[::-1]
    for value, words in (("imagenet", "has 1000 names, but the weights have 10"), ("no", "a text")):
        with pytest.raises(InputError, match=f"class_names .*{words}"):
            convert(None, str(named_run), tmp_path / "other", class_names=value)


def test_an_export_of_a_run_has_its_size_and_names(named_run, tmp_path):
    arguments = {"checkpoint": "best", "platforms": ["cpu"]}
    line = export_file(None, str(named_run), tmp_path / "run.stablehlo", **arguments)
    assert "(B, 32, 32, 3) to logits (B, 10)" in line
    facts = json.loads((tmp_path / "run.json").read_text())
    assert facts == {"class_names": list(NAMES), "image_size": 32, "crop": "whole"}
    onnx = pytest.importorskip("onnx")
    export_file(None, str(named_run), tmp_path / "run.onnx", checkpoint="best")
    metadata = {m.key: m.value for m in onnx.load(tmp_path / "run.onnx").metadata_props}
    assert json.loads(metadata["class_names"]) == list(NAMES)
    assert (metadata["image_size"], metadata["crop"], metadata["model"]) == ("32", "whole", MODEL)


def test_predict_of_a_run_needs_no_data(named_run):
    config = json.loads((named_run / "config.json").read_text())
    config["dataset"] = "folder:is/not/here"
    (named_run / "config.json").write_text(json.dumps(config))
    assert predict.load(None, str(named_run), "best").class_names == list(NAMES)


def test_a_run_is_not_resumed_on_other_classes(named_run):
    before = (named_run / "config.json").read_text()
    with pytest.raises(InputError, match=r"10 classes are not the 10 of .* \(zero, .* missing; 0,"):
        runs.train(load_config(named_run), named_run)
    assert (named_run / "config.json").read_text() == before
    check_class_names(named_run, NAMES)
    with pytest.raises(InputError, match=r"another order.*would mean other classes"):
        check_class_names(named_run, NAMES[::-1])
    with pytest.raises(InputError, match=r"the 11 classes|11 classes are not .*\(ten new\)"):
        check_class_names(named_run, (*NAMES, "ten"))


@pytest.mark.parametrize("text", ["", "[1]", '{"class_names": 3}', '{"class_names": [1]}'])
def test_damaged_names_are_named(text, named_run):
    (named_run / FILE).write_text(text)
    with pytest.raises(InputError, match=r"classes\.json is damaged"):
        read_card(named_run)


def test_training_starts_from_a_checkpoint(named_run):
    config = load_config(named_run)
    with config.unlocked():
        config.pretrained.weights, config.pretrained.checkpoint = str(named_run), "best"
    pretrained = recipe.build(config).pretrained
    assert pretrained is not None
    assert_trees_equal(pretrained()["params"], stored(named_run, 6))
    config.pretrained.weights = "published"
    with pytest.raises(InputError, match=r"pretrained.checkpoint 'best' needs a run as"):
        recipe.build(config)
