"""The benchmark's arithmetic is right and its parts run; speeds are not tested."""

import collections
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmark import (
    agreement,
    classification,
    detection,
    detection_parts,
    layers,
    ours,
    peers,
    profiling,
    report,
    runtimes,
    segmentation,
)
from experiments.timing import random_variables
from resnest_jax import create_model
from resnest_jax.errors import InputError

# One worker runs them all: they share a fixture that takes long.
pytestmark = pytest.mark.xdist_group("benchmark")

BATCH = 7  # no kernel has this size


@pytest.fixture(scope="module")
def programs():
    model = create_model("resnest14", num_classes=10, planes=(8, 8, 8, 8), stem_width=4)
    images = jax.random.normal(jax.random.key(0), (BATCH, 32, 32, 3))
    variables = random_variables(model, images)
    found = ours.inference(model, variables, images) | runtimes.programs(model, variables, images)
    return found | {"training": ours.training_step(model, images)}


@pytest.mark.parametrize("kind", ["training", "multi_scale"])
def test_programs_of_segmentation(kind):
    backbone = "resnest14"
    model = create_model(
        "deeplabv3", backbone=backbone, num_classes=7, planes=(8, 8, 8, 8), stem_width=4
    )
    images = jax.random.normal(jax.random.key(0), (2, 33, 33, 3))
    found = segmentation.programs(backbone, model, images, kind, torch=False)
    result = found["as trained"].call()
    if kind == "multi_scale":
        assert result.shape == (27, 36)  # 520 / 480 of the side of the windows
        assert result.max() < 7


def test_layers_of_segmentation():
    """1x1 layers are those of the heads that see more than one pixel."""
    model = create_model(
        "deeplabv3", backbone="resnest14", num_classes=7, planes=(8, 8, 8, 8), stem_width=4
    )
    found = layers.layers(model, jnp.zeros((2, 65, 65, 3)))
    assert len(found) == len(set(found.values()))
    in_head = {name: layer for layer, name in found.items() if name.startswith("head")}
    shapes = {name: (layer.kernel[0], layer.dilation) for name, layer in in_head.items()}
    assert shapes == {
        "head/aspp/conv0": (1, 1),
        "head/aspp/conv1": (3, 12),
        "head/aspp/conv2": (3, 24),
        "head/aspp/conv3": (3, 36),
        "head/aspp/conv_project": (1, 1),
        "head/classifier/conv1": (3, 1),
        "head/classifier/conv2": (1, 1),
    }
    of_backbone = [layer for layer, name in found.items() if name.startswith("backbone")]
    assert {layer.kernel[0] for layer in of_backbone} == {3}
    assert {layer.dilation for layer in of_backbone} == {1, 2}
    assert in_head["head/aspp/conv1"].input == (2, 9, 9, 32)


def test_layers_that_fall_short_are_listed():
    layer = layers.Layer((2, 8, 8, 4), (3, 3, 2, 6), 1, 2, 2)
    table = [
        {"": name, **layer._asdict(), **({report.RATIO: ratio} if ratio else {})}
        for name, ratio in (("a", 0.9), ("b", 1.0), ("c", None), ("d", 0.5))
    ]
    fields = "input (2, 8, 8, 4), kernel (3, 3, 2, 6), stride 1, dilation 2, groups 2"
    assert layers.slower(table) == [
        f"0.5 of PyTorch's speed: d, {fields}",
        f"0.9 of PyTorch's speed: a, {fields}",
    ]


def test_pytorch_has_the_same_layers(monkeypatch):
    pytest.importorskip("timm")
    found = {
        layers.Layer((2, 9, 8, 4), (3, 3, 2, 6), 1, 2, 2): "dilated",
        layers.Layer((2, 9, 8, 4), (3, 3, 4, 6), 2, 1, 1): "strided",
        layers.Layer((2, 9, 8, 4), (1, 1, 4, 6), 1, 1, 1): "pointwise",
    }
    table = layers.rows(found, "float32", 2, train=True, torch=True)
    assert [row[""] for row in table] == ["dilated", "strided", "pointwise"]
    assert all(row[report.RATIO] > 0 for row in table)
    monkeypatch.setitem(agreement.TOLERANCES, "float32", 0)
    with pytest.raises(InputError, match="PyTorch's output of Layer"):
        layers.rows(found, "float32", 2, train=True, torch=True)


def test_layers_without_pytorch():
    layer = layers.Layer((2, 9, 8, 4), (1, 1, 4, 6), 1, 1, 1)
    (row,) = layers.rows({layer: "one"}, "float32", 2, train=False, torch=False)
    assert set(row) == {"", *layer._fields, "auto ms"}


def small_detector(name="faster_rcnn", planes=(8, 8, 8, 8), stem_width=4):
    """Return a detector and a batch of two images for it."""
    model = create_model(
        name,
        backbone="resnest14",
        num_classes=3,
        planes=planes,
        stem_width=stem_width,
        features=8,
        hidden=8,
        test_proposals=20,
        train_proposals=20,
        roi_samples=10,
        detections=5,
    )
    return model, detection.make_batch(model, (2, 64, 96, 3), 64)


@pytest.mark.parametrize("name", ["faster_rcnn", "cascade_mask_rcnn"])
def test_parts_of_detection_make_the_detector(name):
    settings = {"backbone": "resnest14", "torch": False, "train": False}
    parts = detection.programs(*small_detector(name), parts=True, **settings)
    results = {part: program.call() for (part, _), program in parts.items()}
    expected = results[detection_parts.WHOLE]
    assert expected.valid.any()
    found = [*results["detections, NMS"]]
    if "mask" in name:
        valid = expected.valid[..., None, None]
        found.append(jnp.where(valid, results["mask head"], 0))
        pasted = results["pasting masks"]
        assert len(pasted) == expected.valid.sum()
        assert {pixels.shape for pixels in pasted} == {detection.PHOTO}
    for ours_, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours_, theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("train", "parts"), [(False, True), (True, True), (True, False)])
def test_pytorch_has_the_same_detector(train, parts):
    """Results that differ would raise; each of our parts is one of PyTorch's."""
    pytest.importorskip("timm")
    pytest.importorskip("torchvision")
    detector = small_detector("cascade_mask_rcnn", (64, 128, 256, 512), 32)  # timm's
    settings = {"backbone": "resnest14", "torch": True, "train": train, "parts": parts}
    found = detection.programs(*detector, **settings)
    for program in found.values():
        program.call()
    names = collections.Counter(name for name, _ in found) if parts else {"step": len(found)}
    assert set(names.values()) == {3}  # ours, and PyTorch's two layouts


def test_training_step_of_detection():
    settings = {"backbone": "resnest14", "torch": False, "train": True, "parts": False}
    step = detection.programs(*small_detector(), **settings)["as trained"]
    _, metrics = step.call()
    assert metrics["loss"] > 0


def test_parts_of_training_have_gradients():
    parts = detection.programs(
        *small_detector(), backbone="resnest14", torch=False, train=True, parts=True
    )
    of_heads = parts["heads", detection_parts.OURS].call()
    (logits, _), (of_params, of_pooled) = of_heads
    assert set(of_params) == {"box_head", "box_predictor"}
    assert logits.shape == (2, 10, 4)
    assert of_pooled.shape == (2, 10, 7, 7, 8)
    _, (_, of_pyramid) = parts["RoIAlign", detection_parts.OURS].call()
    assert jnp.abs(of_pyramid["p2"]).max() > 0
    assert jnp.abs(of_pyramid["p6"]).max() == 0  # nothing is pooled from it
    assert parts["proposals, NMS", detection_parts.OURS].call().boxes.shape == (2, 20, 4)


def test_ratios_of_parts():
    seconds = {
        ("heads", "ours"): [0.1, 0.2, 0.4],
        ("heads", "eager, NCHW"): [0.3, 0.6, 0.8],
        ("heads", "eager, channels last"): [0.9, 0.9, 0.9],
        ("RPN", "ours"): [0.1, 0.1, 0.1],
    }
    heads, rpn = report.parts(seconds, "ours")
    assert heads == {"": "heads", "ms": 200, "eager PyTorch, ms": 600, "times eager PyTorch": 3}
    assert rpn == {"": "RPN", "ms": 100}


def test_programs_are_made_and_called(programs):
    for program in programs.values():
        program.call()
        assert program.compile_seconds > 0
    logits = programs["as trained"].call()
    assert logits.shape == (BATCH, 10)
    runtimes_ = [name for name in programs if name in ("ONNX Runtime, CPU", "OpenVINO, CPU")]
    assert "ONNX Runtime, CPU" in runtimes_
    for name in runtimes_:
        assert abs(programs[name].call() - logits).max() < 1e-4 * abs(logits).max()


def test_results_that_differ_are_an_error():
    expected = np.array([1.0, -2.0])
    agreement.check("x", np.array([1.001, -2.0]), expected)
    with pytest.raises(InputError, match=r"^x differs from ours by 5.0e-03 of the largest value"):
        agreement.check("x", np.array([1.01, -2.0]), expected)
    with pytest.raises(InputError, match="differs from ours by nan"):
        agreement.check("x", np.array([np.nan, -2.0]), expected)
    with pytest.raises(InputError, match=r"shape \(1, 2\), ours \(2,\)"):
        agreement.check("x", expected[None], expected)


def test_runtimes_that_are_not_there_are_named(monkeypatch, capsys):
    model = create_model("resnest14", dtype=jnp.bfloat16)
    monkeypatch.setattr(runtimes.importlib.util, "find_spec", lambda name: name == "onnx")
    assert runtimes.programs(model, {}, jnp.zeros((1, 32, 32, 3))) == {}
    assert capsys.readouterr().out.splitlines() == [
        "ONNX Runtime is skipped: onnxruntime is not installed, exports are float32",
        "OpenVINO is skipped: openvino is not installed, exports are float32",
    ]


def test_rows_of_peers(tmp_path):
    """Of PyTorch's layouts the faster one counts; ratios are medians over the rounds."""
    seconds = {
        "as trained": [0.2, 0.4, 0.8],
        "head alone": [0.1, 0.1, 0.1],
        "folded": [0.1, 0.2, 0.4],
        "ONNX Runtime, CPU": [0.2, 0.2, 0.2],
        "PyTorch eager, NCHW": [0.5, 0.5, 0.9],
        "PyTorch eager, channels last": [0.3, 0.3, 0.4],
        "PyTorch compiled and frozen, NCHW": [0.1, 0.1, 0.1],
    }
    table = peers.rows(seconds, batch_size=2)
    speeds = {row["name"]: row["images_per_second"] for row in table}
    assert speeds == {
        "ours": 5,
        "ours folded": 10,
        "pytorch eager": 6.67,
        "pytorch frozen": 20,
        "onnxruntime": 10,
    }
    ratios = {row["name"]: (row["ours / it"], row["ours folded / it"]) for row in table}
    assert ratios["ours"] == (1, 2)
    assert ratios["pytorch eager"] == (0.75, 1.5)  # of 1.5, 0.75, 0.5 and twice that
    assert ratios["onnxruntime"] == (0.5, 1)
    table += peers.rows({"as trained": [0.5, 0.5]}, batch_size=8)
    report.show(table, "benchmark", tmp_path)
    assert json.loads((tmp_path / "benchmark.json").read_text()) == table
    assert (tmp_path / "benchmark.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.parametrize("train", [False, True])
def test_pytorch_has_the_same_classifier(train):
    """Logits that differ would raise."""
    pytest.importorskip("timm")
    model = create_model("resnest14")
    images = jax.random.normal(jax.random.key(0), (2, 64, 64, 3))
    settings = {"train": train, "others": True, "torch": True, "compiled": False}
    found = classification.programs("resnest14", model, images, **settings)
    assert {"PyTorch eager, NCHW", "PyTorch eager, channels last"} <= set(found)
    for program in found.values():
        program.call()


def test_comparison_is_round_by_round(programs, tmp_path):
    """Folded takes half the time of the first, and two thirds of PyTorch's better layout."""
    seconds = {
        "as trained": [0.2, 0.4, 0.8],
        "folded": [0.1, 0.2, 0.4],
        "PyTorch eager, NCHW": [0.5, 0.5, 0.9],
        "PyTorch eager, channels last": [0.15, 0.3, 0.6],
        "PyTorch compiled, NCHW": [0.01, 0.01, 0.01],
    }
    found = report.comparison(seconds, dict.fromkeys(seconds, programs["folded"]), images=4)
    folded = found[1]
    assert folded["images/s"] == 20
    assert folded["ms per call"] == 200
    assert folded["times the first"] == 2
    assert folded["times eager PyTorch"] == 1.5
    report.show(found, "inference", tmp_path)
    assert json.loads((tmp_path / "inference.json").read_text()) == found
    assert (tmp_path / "inference.png").read_bytes().startswith(b"\x89PNG")
    alone = report.comparison({"as trained": [0.2, 0.2]}, programs, images=4)
    assert alone[0]["times eager PyTorch"] == ""


def test_inference_moves_no_feature_map(programs):
    """Only kernels may change their layout; the check finds a program with a transpose."""
    transposed = jax.jit(lambda x: x.T + 0).lower(jax.ShapeDtypeStruct((64, 32), "float32"))
    assert profiling.moved(transposed.compile().as_text()) == [([32, 64], 64 * 32 * 4)]
    for name in ("as trained", "folded"):
        shapes = [shape for shape, _ in profiling.moved(programs[name].compiled.as_text())]
        assert not [shape for shape in shapes if BATCH in shape]


def test_profile_finds_the_operations(programs, tmp_path, capsys):
    rows = profiling.rows(programs["training"], "float32", tmp_path)
    assert any("gradient" in row[""] for row in rows)
    assert all(row["ms"] >= 0 for row in rows)
    assert "GFLOP alone" in capsys.readouterr().out
