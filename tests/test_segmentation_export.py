"""Exports of segmentation models: what is in the files, and their logits."""

import json
import subprocess
import sys

import golden
import jax
import numpy as np
import onnxruntime
import pytest
from commands import assert_one_line, run
from test_export import STRANGER, relative_error

from resnest_jax.errors import InputError
from resnest_jax.models.backbone import clone_backbone
from resnest_jax.models.inputs import normalize
from resnest_jax.weights import stablehlo
from resnest_jax.weights.card import Card
from resnest_jax.weights.exports import export_file
from resnest_jax.weights.formats import write_file

NAMES = ("grass", "sky", "wall")
PALETTE = ((40, 160, 50), (90, 150, 230), (190, 60, 40))
FIELDS = {"planes": (8, 8, 8, 8), "stem_width": 4, "num_classes": len(NAMES)}
FIELDS |= {"backbone": "resnest14", "auxiliary": True}


@pytest.fixture(scope="module")
def deeplab(tmp_path_factory):
    """A model, golden variables and their file, which describes the model."""
    model, variables = golden.build("deeplabv3", FIELDS)
    path = tmp_path_factory.mktemp("weights") / "deeplab.safetensors"
    card = Card(NAMES, image_size=40, palette=PALETTE)
    write_file(path, golden.state_dict(model), card, {"name": "deeplabv3", **FIELDS})
    return model, variables, path


def pixels(height, width):
    return np.random.default_rng(0).integers(0, 256, (2, height, width, 3), np.uint8)


def expected_logits(model, variables, images):
    return np.asarray(jax.jit(model.apply)(variables, normalize(images)))


def test_stablehlo_runs_without_the_package(deeplab, tmp_path):
    model, variables, weights = deeplab
    flags = ["--image_size=37,50", "--platforms=cpu", "--output=model.stablehlo"]
    result = run("resnest_jax.export", f"--weights={weights}", *flags, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "uint8 images (B, 37, 50, 3) to logits (B, 37, 50, 3), for cpu" in result.stdout
    facts = json.loads((tmp_path / "model.json").read_text())
    palette = [list(color) for color in PALETTE]
    assert facts == {"class_names": list(NAMES), "palette": palette, "image_size": [37, 50]}
    images = pixels(37, 50)
    np.save(tmp_path / "images.npy", images)
    command = [sys.executable, "-c", STRANGER, "model.stablehlo", "images.npy", "logits.npz"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=300)
    logits = np.load(tmp_path / "logits.npz")
    expected = expected_logits(model, variables, images)
    assert relative_error(logits["all"], expected) < 1e-5
    assert relative_error(logits["one"], expected[:1]) < 1e-5


def test_onnx_has_the_size_of_the_weights(deeplab, tmp_path):
    model, variables, weights = deeplab
    line = export_file(None, str(weights), tmp_path / "model.onnx")
    assert "float32 images (B, 3, 40, 40) to logits (B, 3, 40, 40), ONNX opset 18" in line
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    metadata = session.get_modelmeta().custom_metadata_map
    assert (metadata["model"], metadata["backbone"]) == ("deeplabv3", "resnest14")
    assert (metadata["image_size"], json.loads(metadata["class_names"])) == ("40", list(NAMES))
    images = pixels(40, 40)
    mean, std = (np.array(json.loads(metadata[key])) for key in ("mean", "std"))
    normalized = np.moveaxis((images - mean) / std, -1, 1).astype(np.float32)
    (logits,) = session.run(None, {"images": normalized})
    expected = expected_logits(model, variables, images)
    assert relative_error(np.moveaxis(logits, 1, -1), expected) < 1e-5


def test_form_is_that_of_the_platform(deeplab):
    """As of classifiers: windows elsewhere than on CPU, grouped convolutions on GPUs."""
    model, variables, _ = deeplab
    model = clone_backbone(model, implementation="split", dtype="bfloat16")
    for platform in ("cuda", "tpu", "cpu"):
        text = stablehlo.export(model, variables, (32, 32), [platform]).mlir_module()
        assert ("feature_group_count = 2" in text) == (platform == "cuda")
        assert ("reduce_window" in text) == (platform != "cpu")
        assert "xbf16>" in text
        assert "-> (tensor<?x32x32x3xf32>" in text


def test_bad_flags_are_named(deeplab, tmp_path):
    weights = deeplab[2]
    for size in ("40,50,60", "40,", "40,31", "side"):
        flags = [f"--weights={weights}", "--output=out.onnx", f"--image_size={size}"]
        result = run("resnest_jax.export", *flags, cwd=tmp_path)
        assert_one_line(result, "--image_size must be a side of at least 32 pixels, or", size)
    with pytest.raises(InputError, match="have the backbone resnest14, not resnest50"):
        export_file(None, str(weights), tmp_path / "out.onnx", backbone="resnest50")
    with pytest.raises(
        InputError, match="backbone resnest50: only a model of segmentation or detection has one"
    ):
        export_file("resnest50", None, tmp_path / "out.onnx", backbone="resnest50")
    with pytest.raises(InputError, match="are those of deeplabv3, not of fcn"):
        export_file("fcn", str(weights), tmp_path / "out.onnx")
    assert not list(tmp_path.iterdir())
