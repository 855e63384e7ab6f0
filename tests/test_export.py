"""Folding of batch norms; the exported artefact in a process without this package."""

import json
import struct
import subprocess
import sys
from functools import partial

import commands
import golden
import jax
import numpy as np
import onnxruntime
import pytest

import resnest_jax
from resnest_jax.errors import InputError
from resnest_jax.models.inputs import normalize
from resnest_jax.models.resnest import PART
from resnest_jax.weights import stablehlo

SIZE = 64
# Stage 1 has a block with a projected shortcut and one without; every model repeats these two.
SHALLOW = {"stage_sizes": (2, 1, 1, 1), "planes": (64, 64, 64, 64)}

# argv: the artefact, images, file for the logits
STRANGER = """
import sys
import jax, numpy as np
from jax import export
artefact = export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
call = jax.jit(artefact.call)
images = np.load(sys.argv[2])
np.savez(sys.argv[3], one=call(images[:1]), all=call(images))
assert not {"resnest_jax", "flax"} & set(sys.modules)
"""


def relative_error(actual, expected):
    return np.abs(np.asarray(actual) - expected).max() / np.abs(expected).max()


def write_safetensors(path, state_dict):
    header, start = {}, 0
    for key, array in state_dict.items():
        offsets = [start, start + array.nbytes]
        header[key] = {"dtype": "F32", "shape": array.shape, "data_offsets": offsets}
        start = offsets[1]
    text = json.dumps(header).encode()
    arrays = (np.ascontiguousarray(array).tobytes() for array in state_dict.values())
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(arrays))


def export(weights, output, *args):
    flags = ["--model=resnest14", f"--weights={weights}", f"--output={output}"]
    return commands.run("resnest_jax.export", *flags, f"--image_size={SIZE}", *args, devices=8)


@pytest.fixture(scope="module")
def resnest14(tmp_path_factory):
    """Model, golden variables and their file."""
    model, variables = golden.build("resnest14", {})
    path = tmp_path_factory.mktemp("weights") / "resnest14.safetensors"
    write_safetensors(path, golden.state_dict(model))
    return model, variables, path


@pytest.mark.parametrize("name", resnest_jax.list_models())
def test_folded_model_has_the_same_logits(name):
    model, variables = golden.build(name, SHALLOW)
    images = golden.images((2, SIZE, SIZE), 1)
    expected = np.asarray(jax.jit(model.apply)(variables, images))
    folded, folded_variables = resnest_jax.fold(model, variables)
    logits = jax.jit(folded.apply)(folded_variables, images)
    assert relative_error(logits, expected) < 1e-4


def test_large_batch_of_a_folded_model_is_worked_in_parts(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    model, variables = golden.build("resnest14", SHALLOW)
    folded, params = resnest_jax.fold(model, variables)
    images = golden.images((2 * PART, 64, 64), 1)
    program = jax.jit(folded.apply)
    logits = program(params, images)
    parts = [program(params, images[i : i + PART]) for i in (0, PART)]
    assert relative_error(logits, np.concatenate(parts)) < 1e-5
    assert relative_error(logits, np.asarray(jax.jit(model.apply)(variables, images))) < 1e-4
    temporary = program.lower(params, images).compile().memory_analysis().temp_size_in_bytes
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    whole = jax.jit(lambda *inputs: folded.apply(*inputs)).lower(params, images).compile()
    assert temporary < 0.75 * whole.memory_analysis().temp_size_in_bytes


def test_attention_of_a_large_batch_of_a_folded_model_is_whole(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    model, variables = golden.build("resnest14", SHALLOW)
    folded, params = resnest_jax.fold(model, variables)
    images = golden.images((2 * PART, 32, 32), 1)
    _, state = jax.jit(partial(folded.apply, mutable=["intermediates"]))(params, images)
    (attention,) = state["intermediates"]["stage1_block1"]["conv2"]["attention"]
    assert attention.shape == (2 * PART, 2, 64)


@pytest.mark.parametrize("name", ["resnest14", "resnet50", "skresnet50"])
def test_folded_variables_are_those_of_the_folded_model(name):
    model, variables = golden.build(name, SHALLOW)
    folded, folded_variables = resnest_jax.fold(model, variables)
    images = golden.images((1, SIZE, SIZE), 1)
    expected = jax.eval_shape(folded.init, jax.random.key(0), images)
    assert list(folded_variables) == ["params"] == list(expected)
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), folded_variables)
    assert shapes == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), expected)
    assert "scale" not in folded_variables["params"]["stem"]["bn1"]


def test_fold_leaves_its_argument_alone(resnest14):
    model, variables, _ = resnest14
    before = jax.tree.map(np.array, variables)
    resnest_jax.fold(model, variables)
    jax.tree.map(np.testing.assert_array_equal, before, variables)


def test_fold_refuses_what_it_cannot_fold(resnest14):
    model, variables, _ = resnest14
    with pytest.raises(InputError, match="folded"):
        resnest_jax.fold(*resnest_jax.fold(model, variables))
    stem = variables["params"]["stem"]
    stem = {("other" if name == "conv1" else name): layer for name, layer in stem.items()}
    params = variables["params"] | {"stem": stem}
    with pytest.raises(InputError, match=r"stem/bn1.*conv1"):
        resnest_jax.fold(model, variables | {"params": params})


@pytest.mark.parametrize("platforms", [["cuda"], ["tpu"], ["cpu", "cuda", "tpu"], ["cpu"]])
def test_form_is_that_of_the_platform(platforms, resnest14):
    """Windows, except for CPU alone, and grouped convolutions on GPUs; logits are equal."""
    model, variables, _ = resnest14
    model = model.clone(implementation="split")  # as a run on CPU may choose
    exported = stablehlo.export(model, variables, (SIZE, SIZE), platforms)
    text = exported.mlir_module()
    assert ("feature_group_count = 2" in text) == ("cuda" in platforms)
    assert ("reduce_window" in text) == (platforms != ["cpu"])
    if "cpu" in platforms:
        images = np.random.default_rng(0).integers(0, 256, (2, SIZE, SIZE, 3), np.uint8)
        expected = np.asarray(jax.jit(model.apply)(variables, normalize(images)))
        assert relative_error(jax.jit(exported.call)(images), expected) < 1e-4


@pytest.mark.parametrize("name", ["resnest14", "resnest50_fast_2s2x40d", "resnet50"])
def test_forms_of_the_platforms_agree(name):
    model, variables = golden.build(name, SHALLOW)
    images = golden.images((2, SIZE, SIZE + 1), 1)
    logits = {}
    for platform in (None, "cpu", "cuda"):
        apply = jax.jit(model.clone(platform=platform).apply)
        logits[platform] = np.asarray(apply(variables, images))
    np.testing.assert_array_equal(logits[None], logits["cpu"])
    assert relative_error(logits["cuda"], logits["cpu"]) < 1e-4


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_exported_artefact_runs_without_the_package(dtype, resnest14, tmp_path):
    model, variables, weights = resnest14
    output = tmp_path / "model.stablehlo"
    result = export(weights, output, f"--dtype={dtype}")
    assert result.returncode == 0, result.stderr
    assert [path.name for path in tmp_path.iterdir()] == [output.name]
    assert "(B, 64, 64, 3)" in result.stdout
    assert "cpu, cuda, tpu" in result.stdout

    images = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), np.uint8)
    np.save(tmp_path / "images.npy", images)
    command = [sys.executable, "-c", STRANGER, output.name, "images.npy", "logits.npz"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=300)
    logits = np.load(tmp_path / "logits.npz")
    expected = np.asarray(jax.jit(model.apply)(variables, normalize(images)))
    tolerance = {"float32": 1e-4, "bfloat16": 0.1}[dtype]
    assert logits["all"].dtype == np.float32
    assert relative_error(logits["all"], expected) < tolerance
    assert relative_error(logits["one"], expected[:1]) < tolerance


def test_exported_onnx_has_the_authors_logits(resnest14, tmp_path):
    output = tmp_path / "model.onnx"
    result = export(resnest14[2], output)
    assert result.returncode == 0, result.stderr
    assert "(B, 3, 64, 64) to logits (B, 1000), ONNX opset 18, 104 nodes" in result.stdout
    assert [path.name for path in tmp_path.iterdir()] == [output.name]
    session = onnxruntime.InferenceSession(output)
    metadata = session.get_modelmeta().custom_metadata_map
    assert metadata["model"] == "resnest14"
    stored = {key: json.loads(metadata[key]) for key in ("image_size", "mean", "std")}
    mean, std = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
    assert stored == {"image_size": SIZE, "mean": mean, "std": std}
    images = np.moveaxis(golden.images((2, SIZE, SIZE), 1), -1, 1)
    (logits,) = session.run(None, {"images": images})
    assert relative_error(logits, golden.golden("resnest14@64", "logits")) < 1e-4


@pytest.mark.parametrize(
    ("output", "flag", "words"),
    [
        ("model.pb", "--dtype=float32", ("output must end", ".stablehlo", ".onnx", "model.pb")),
        ("absent/model.stablehlo", "--dtype=float32", ("output", "absent")),
        ("model.stablehlo", "--platforms=cpu,abacus", ("platforms", "abacus")),
        ("model.stablehlo", "--image_size=16", ("image_size", "16")),
        ("model.onnx", "--platforms=cpu", ("platforms", ".stablehlo", "cpu")),
        ("model.onnx", "--dtype=bfloat16", ("dtype", ".stablehlo", "bfloat16")),
    ],
)
def test_bad_flags_are_one_line(output, flag, words, resnest14, tmp_path):
    result = export(resnest14[2], tmp_path / output, flag)
    assert result.returncode == 1
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    for word in words:
        assert word in result.stderr
    assert not list(tmp_path.iterdir())
