"""Files and directories of segmentation weights: what they hold is seen, or they say it."""

import gzip
import hashlib
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import segmentation_golden as golden
from commands import assert_one_line, run

import resnest_jax
from resnest_jax.data.label_tables import published_table
from resnest_jax.errors import InputError
from resnest_jax.weights import published
from resnest_jax.weights.card import Card
from resnest_jax.weights.conversion import convert
from resnest_jax.weights.formats import write_file
from resnest_jax.weights.segmentation import holds_segmenter, load_weights, recognise

DEEPLAB = {"backbone": "resnest14", "num_classes": 59, "auxiliary": True}


def entries(name, **fields):
    """Return a state dictionary of a model under the authors' names, each value drawn."""
    model = resnest_jax.create_model(name, **fields)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: rng.random(x.shape, np.float32), shapes)
    return resnest_jax.to_torch(variables, model)


def assert_holds(found, state_dict):
    """Check that loaded weights are these."""
    again = resnest_jax.to_torch(found.variables, found.model)
    assert again.keys() == state_dict.keys()
    for key, value in state_dict.items():
        np.testing.assert_array_equal(again[key], value, err_msg=key)


@pytest.fixture(scope="module")
def deeplab():
    return entries("deeplabv3", **DEEPLAB)


@pytest.fixture(scope="module")
def plain(deeplab, tmp_path_factory):
    """A file that does not describe its model."""
    path = tmp_path_factory.mktemp("weights") / "plain.safetensors"
    write_file(path, deeplab)
    return path


def test_a_wrapped_file_without_counters_is_recognised(tmp_path):
    name, fields = "fcn", {"backbone": "resnext50_32x4d", "num_classes": 1, "auxiliary": False}
    state_dict = entries(name, **fields)
    wrapped = {f"module.{k}": v for k, v in state_dict.items() if "num_batches" not in k}
    write_file(tmp_path / "w.safetensors", wrapped)
    found = load_weights(None, str(tmp_path / "w.safetensors"))
    assert {key: found.description[key] for key in ("name", *fields)} == {"name": name, **fields}
    assert found.class_names[0] == "class 0"
    assert (found.config.crop_size, found.config.dataset, found.step) == (480, "", None)
    assert_holds(found, state_dict)


@pytest.mark.parametrize("name", ["deeplab_resnest50_150aux", "fcn_resnest101_150aux"])
def test_the_authors_own_lists_of_entries_are_recognised(name):
    with gzip.open(golden.FOLDER / "state_dict_keys.json.gz") as file:
        shapes = json.load(file)[name]
    zeros = {key: np.broadcast_to(np.float32(0), shape) for key, shape in shapes}
    head, backbone, _ = name.split("_")
    fields = {"name": golden.HEADS[head], "backbone": backbone}
    expected = {**fields, "num_classes": 150, "auxiliary": True}
    assert recognise(Path("any.pth"), zeros) == expected


def test_conversion_and_back(plain, deeplab, tmp_path):
    named, folder, back = (tmp_path / name for name in ("named.safetensors", "folder", "b.pt"))
    line = convert(None, str(plain), named, class_names="pascal_context")
    assert f"deeplabv3 on resnest14, 59 classes, auxiliary head, {len(deeplab)} entries" in line
    convert(None, str(named), folder)
    table = published_table("pascal_context")
    for path in (named, folder):
        found = load_weights(None, str(path))
        assert (found.card.class_names, found.card.palette) == (table.names, table.palette)
        assert_holds(found, deeplab)
    torch = pytest.importorskip("torch")
    convert("deeplabv3", str(folder), back)
    content = torch.load(back, weights_only=True)
    assert list(content) == list(deeplab)
    torch.save({"epoch": 3, "state_dict": content, "best_pred": 0.5}, tmp_path / "checkpoint.pth")
    assert_holds(load_weights(None, str(tmp_path / "checkpoint.pth")), deeplab)


def test_fields_that_no_entry_shows_travel(tmp_path):
    """Those of a backbone that is not of the zoo, the windows of the test and the output stride."""
    fields = {"planes": (8, 8, 8, 8), "stem_width": 4, "output_stride": 16}
    state_dict = entries("fcn", **DEEPLAB, **fields)
    write_file(tmp_path / "w.safetensors", state_dict)
    with pytest.raises(InputError, match=r"is none of the zoo; .* is named with --backbone"):
        load_weights("fcn", str(tmp_path / "w.safetensors"))
    with pytest.raises(InputError, match=r"does not fit the model; misshapen: pretrained\.conv1"):
        load_weights("fcn", str(tmp_path / "w.safetensors"), backbone="resnest14")
    card = Card(image_size=64, base_size=96, scales=(0.5, 1.0))
    write_file(tmp_path / "w.safetensors", state_dict, card, {"name": "fcn", **DEEPLAB, **fields})
    found = load_weights(None, str(tmp_path / "w.safetensors"))
    assert (found.model.backbone.planes, found.model.backbone.output_stride) == ((8, 8, 8, 8), 16)
    config = found.config
    assert (config.crop_size, config.augment.base_size) == (64, 96)
    assert config.evaluation.scales == (0.5, 1.0)
    assert_holds(found, state_dict)


def test_a_published_file_has_its_classes_and_its_hash(plain, tmp_path, monkeypatch):
    path = tmp_path / "deeplab_resnest50_pcontext-08dccbc4.pth"
    path.write_bytes(plain.read_bytes())
    with pytest.raises(InputError, match="are not what was published: their sha1 is"):
        load_weights(None, str(path))
    digest = hashlib.sha1(plain.read_bytes()).hexdigest()[:8]
    monkeypatch.setitem(published.SEGMENTERS, "deeplab_resnest50_pcontext", digest)
    path = path.rename(tmp_path / f"deeplab_resnest50_pcontext-{digest}.pth")
    assert load_weights(None, str(path)).class_names == published_table("pascal_context").names


def test_what_is_asked_for_must_be_there(plain, deeplab, tmp_path):
    assert holds_segmenter(None, str(plain))
    assert holds_segmenter("fcn", None)
    assert not holds_segmenter("resnest50", str(plain))
    for (name, weights), message in {
        ("fcn", str(plain)): "are those of deeplabv3, not of fcn",
        ("fcn", None): "weights of fcn cannot be fetched: give the file",
        (None, str(tmp_path / "none.pth")): "no such file",
    }.items():
        with pytest.raises(InputError, match=message):
            load_weights(name, weights)
    with pytest.raises(InputError, match="only a run has checkpoints"):
        load_weights(None, str(plain), "best")
    broken = {key: value for key, value in deeplab.items() if key != "head.aspp.b0.0.weight"}
    write_file(tmp_path / "broken.safetensors", broken)
    with pytest.raises(InputError, match=r"missing: head\.aspp\.b0\.0\.weight"):
        load_weights(None, str(tmp_path / "broken.safetensors"))
    write_file(tmp_path / "headless.safetensors", {"pretrained.fc.bias": np.zeros(2, np.float32)})
    with pytest.raises(InputError, match=r"there is no head\.block\.4\.weight or head\.conv5"):
        load_weights(None, str(tmp_path / "headless.safetensors"))
    write_file(tmp_path / "odd.safetensors", deeplab, description={"backbone": "resnest14"})
    with pytest.raises(InputError, match="is damaged: its metadata describe no model"):
        load_weights(None, str(tmp_path / "odd.safetensors"))
    with pytest.raises(InputError, match="has 1000 names, but the weights have 59 classes"):
        convert(None, str(plain), tmp_path / "out", class_names="imagenet")


def test_commands_take_files(plain, tmp_path):
    missing = run("resnest_jax.evaluate", f"--weights={plain}")
    assert_one_line(missing, "dataset is missing: give --dataset, scenes, ade20k:PATH")
    picture = run("resnest_jax.predict", f"--weights={plain}", "photo.png")
    assert_one_line(picture, "give --output=DIRECTORY")
    classifier = run("resnest_jax.predict", "--model=resnest50", "--backbone=resnest50", "x.png")
    assert_one_line(classifier, "--backbone is not for classification")
