"""Exports of detectors: detections in a process without this package."""

import json
import subprocess
import sys

import detector_golden
import jax
import numpy as np
import pytest

import resnest_jax
from resnest_jax.errors import InputError
from resnest_jax.models.inputs import normalize_padded
from resnest_jax.weights import stablehlo
from resnest_jax.weights.card import Card
from resnest_jax.weights.detectron import PREDICTOR
from resnest_jax.weights.exports import export_file
from resnest_jax.weights.formats import write_file

NAMES = ("cat", "dog", "kite")
FIELDS = {"backbone": "resnest14", "planes": (8, 8, 16, 16), "stem_width": 4, "num_classes": 3}
FIELDS |= {"features": 8, "hidden": 16, "anchor_sizes": (8.0, 12.0, 16.0, 24.0, 32.0)}
FIELDS |= {"test_candidates": 20, "test_proposals": 8, "detections": 6, "score_threshold": 0.01}

# argv: the artefact, its arguments, file for the results
STRANGER = """
import sys
import jax, numpy as np
from jax import export
artefact = export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
given = np.load(sys.argv[2])
boxes, scores, classes, valid = jax.jit(artefact.call)(given["images"], given["sizes"])
np.savez(sys.argv[3], boxes=boxes, scores=scores, classes=classes, valid=valid)
assert not {"resnest_jax", "flax"} & set(sys.modules)
"""


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    """A model, golden variables and their file, which describes the model."""
    model = resnest_jax.create_model("faster_rcnn", **FIELDS)
    state_dict = detector_golden.state_dict(model)
    state_dict[f"{PREDICTOR}cls_score.weight"] *= np.float32(0.1)  # else all is background
    path = tmp_path_factory.mktemp("weights") / "detector.safetensors"
    card = Card(NAMES, short_side=50, long_side=90)
    write_file(path, state_dict, card, {"name": "faster_rcnn", **FIELDS})
    return model, resnest_jax.from_torch(state_dict, model), path


def test_stablehlo_runs_without_the_package(detector, tmp_path):
    """On padded images, whose padding is of no colour in particular."""
    model, variables, weights = detector
    line = export_file(None, str(weights), tmp_path / "model.stablehlo", platforms=["cpu"])
    assert (
        "uint8 images (B, 64, 96, 3), int32 sizes (B, 2) to boxes (B, 6, 4), scores (B, 6), "
        "classes (B, 6), valid (B, 6), for cpu"
    ) in line
    facts = json.loads((tmp_path / "model.json").read_text())
    sides = {"short_side": 50, "long_side": 90}
    assert facts == {"class_names": list(NAMES), **sides, "image_size": [64, 96]}
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 96, 3), np.uint8)
    sizes = np.array([[50, 90], [64, 33]], np.int32)
    np.savez(tmp_path / "given.npz", images=images, sizes=sizes)
    command = [sys.executable, "-c", STRANGER, "model.stablehlo", "given.npz", "found.npz"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=300)
    found = np.load(tmp_path / "found.npz")
    apply = jax.jit(lambda images: model.apply(variables, images, sizes, method="detect"))
    expected = apply(normalize_padded(images, sizes))
    assert expected.valid.any(1).all()
    np.testing.assert_array_equal(found["valid"], expected.valid)
    np.testing.assert_array_equal(found["classes"], expected.classes)
    np.testing.assert_allclose(found["boxes"], expected.boxes, atol=1e-3)
    np.testing.assert_allclose(found["scores"], expected.scores, atol=1e-5)


def test_form_is_that_of_the_platform(detector):
    """As of classifiers; there is no padding of the images to multiples of 32."""
    model, variables, _ = detector
    exported = stablehlo.export(model, variables, (40, 33), ["cuda", "tpu"])
    assert "reduce_window" in exported.mlir_module()
    assert [str(dtype.dtype) for dtype in exported.out_avals] == [
        *("float32", "float32", "int32", "bool")
    ]


def test_onnx_is_refused(detector, tmp_path):
    for name, weights in ((None, str(detector[2])), ("faster_rcnn", "anything.pth")):
        with pytest.raises(InputError, match=r"a detector has no \.onnx: output must end in"):
            export_file(name, weights, tmp_path / "out.onnx")
