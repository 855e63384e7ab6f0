"""Weights of detectors: the authors' names, published backbones, runs."""

import detector_golden
import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import resnest_jax
from resnest_jax.errors import InputError
from resnest_jax.weights import detector
from resnest_jax.weights.detectron import ANCHORS, BACKBONE, detectron_name
from resnest_jax.weights.entries import COUNTER

SMALL_BACKBONE = {"planes": (8, 8, 16, 16), "stem_width": 4}
SMALL = SMALL_BACKBONE | {"backbone": "resnest14", "features": 8, "hidden": 16, "num_classes": 3}


def assert_trees_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def zeros(model):
    init = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), init)


@pytest.fixture(scope="module")
def small():
    """A detector of few channels, and a state dictionary for it."""
    model = resnest_jax.create_model("faster_rcnn", **SMALL)
    return model, detector_golden.state_dict(model)


def written(folder, state_dict, name="weights.safetensors"):
    path = folder / name
    safetensors.numpy.save_file(state_dict, path)
    return str(path)


PARAMETERS = {
    ("faster50", "resnest50"): 44_989_408,
    ("faster50", "resnest101"): 65_780_928,
    ("mask50", "resnest50"): 47_633_712,
    ("cascade50", "resnest50"): 75_254_606,
    ("cascade_mask50", "resnest50"): 77_898_910,
    ("cascade_mask50", "resnest101"): 98_690_430,
}


@pytest.mark.parametrize(("name", "backbone"), PARAMETERS)
def test_names_and_parameters_are_those_of_the_authors(name, backbone):
    model = resnest_jax.create_model(detector_golden.MODELS[name], backbone=backbone)
    variables = zeros(model)
    stages = variables["params"]["backbone"]
    # Which are buffers there.
    fixed = [stages["stem"], *(stages[name] for name in stages if name.startswith("stage1_"))]
    norms = [
        leaf.size
        for path, leaf in jax.tree_util.tree_leaves_with_path(fixed)
        if path[-2].key.startswith(("bn", "downsample_bn"))
    ]
    leaves = jax.tree.leaves(variables["params"])
    assert sum(leaf.size for leaf in leaves) - sum(norms) == PARAMETERS[name, backbone]
    if backbone == "resnest50":
        shapes = [
            [key, list(array.shape)]
            for key, array in resnest_jax.to_torch(variables, model).items()
        ]
        assert shapes == [
            row[:2] for row in detector_golden.load("state_dicts.json.gz")[name]["rows"]
        ]


@pytest.mark.parametrize("backbone", ["resnet50", "resnetd50", "seresnet50", "skresnet50"])
def test_every_backbone_has_names(backbone):
    """Of a block: its three convolutions, each with a norm, and a shortcut."""
    fields = SMALL | SMALL_BACKBONE | {"backbone": backbone, "stage_sizes": (1, 1, 1, 1)}
    model = resnest_jax.create_model("faster_rcnn", **fields)
    variables = zeros(model)
    state_dict = resnest_jax.to_torch(variables, model)
    assert_trees_equal(resnest_jax.from_torch(state_dict, model), variables)
    stem = "stem.conv1_3" if backbone == "resnetd50" else "stem.conv1"
    names = [stem, "res2.0.shortcut", "res5.0.shortcut"]
    if backbone != "skresnet50":
        names += [f"res3.0.conv{i}" for i in (1, 2, 3)]
    for name in names:
        assert {f"{BACKBONE}{name}.weight", f"{BACKBONE}{name}.norm.running_var"} <= set(state_dict)


def test_round_trip():
    model = resnest_jax.create_model("cascade_mask_rcnn", **SMALL)
    state_dict = detector_golden.state_dict(model)
    variables = resnest_jax.from_torch(state_dict, model)
    back = resnest_jax.to_torch(variables, model)
    for key, value in state_dict.items():
        np.testing.assert_array_equal(back[key], value)
    # Without the counters of frozen norms, as written; and with them, as other codes write.
    counted = {key.replace("running_var", COUNTER): np.int64(7) for key in back if "var" in key}
    for again in (back, back | counted):
        assert_trees_equal(resnest_jax.from_torch(again, model), variables)


def test_unfit_state_dictionaries_are_refused(small):
    model, state_dict = small
    for change, message in [
        ({"roi_heads.mask_head.deconv.weight": np.zeros(3)}, "unknown: roi_heads.mask_head.deconv"),
        ({"roi_heads.box_head.fc1.bias": None}, "missing: roi_heads.box_head.fc1.bias"),
        ({"backbone.fpn_output2.weight": np.zeros((8, 8, 1, 1))}, r"expected \(8, 8, 3, 3\)"),
    ]:
        changed = {k: v for k, v in (state_dict | change).items() if v is not None}
        with pytest.raises(InputError, match=message):
            resnest_jax.from_torch(changed, model)
    key = f"proposal_generator.anchor_generator.{ANCHORS}.1"
    anchors = resnest_jax.to_torch(zeros(model), model)[key]
    resnest_jax.from_torch(state_dict | {key: anchors}, model)
    with pytest.raises(InputError, match=f"{ANCHORS}.1 is "):
        resnest_jax.from_torch(state_dict | {key: 2 * anchors}, model)


def test_files_of_the_authors_are_read(small, tmp_path):
    """Bare, or under ``model`` beside the state of the optimiser."""
    torch = pytest.importorskip("torch")
    model, state_dict = small
    variables = resnest_jax.from_torch(state_dict, model)
    tensors = {key: torch.from_numpy(value) for key, value in state_dict.items()}
    momentum = {"state": {0: {"momentum_buffer": torch.zeros(2)}}}
    for content in (tensors, {"model": tensors, "optimizer": momentum, "iteration": 90_000}):
        torch.save(content, tmp_path / "model_final.pth")
        path = str(tmp_path / "model_final.pth")
        loaded = detector.load_detector(model, "resnest14", path)
        assert_trees_equal(loaded, variables)
        assert detector.missing_heads(model, loaded) == ()


def test_predictor_of_other_classes_is_left_out(small, tmp_path):
    model, state_dict = small
    wrapped = {f"module.{key}": value for key, value in state_dict.items()}
    path = written(tmp_path, wrapped)
    loaded = detector.load_detector(model.clone(num_classes=5), "resnest14", path)
    assert detector.missing_heads(model, loaded) == ("box_predictor",)
    variables = resnest_jax.from_torch(state_dict, model)
    del variables["params"]["box_predictor"]
    assert_trees_equal(loaded, variables)


@pytest.mark.parametrize(
    ("source", "target", "new"),
    [
        ("faster_rcnn", "mask_rcnn", {"mask_head", "mask_predictor"}),
        ("cascade_mask_rcnn", "cascade_rcnn", set()),
    ],
)
def test_files_of_other_detectors(source, target, new, tmp_path):
    """They give the heads that both have; predictors only for the same classes."""
    stored, model = (resnest_jax.create_model(name, **SMALL) for name in (source, target))
    state_dict = detector_golden.state_dict(stored)
    path = written(tmp_path, state_dict)
    loaded = detector.load_detector(model, "resnest14", path)
    assert set(detector.missing_heads(model, loaded)) == new
    variables = resnest_jax.from_torch(state_dict, stored)
    for name, part in loaded["params"].items():
        assert_trees_equal(part, variables["params"][name])
    loaded = detector.load_detector(model.clone(num_classes=5), "resnest14", path)
    assert set(loaded["params"]) == {
        "backbone",
        *(head for head in detector.heads(model) if head not in new and "predictor" not in head),
    }


def test_backbones_of_classification_and_detection_are_the_same(small, tmp_path):
    model, _ = small
    classifier = resnest_jax.create_model("resnest14", **SMALL_BACKBONE, num_classes=7)
    state_dict = golden.state_dict(classifier)
    variables = resnest_jax.from_torch(state_dict, classifier)
    renamed = {
        detectron_name(key, classifier): value
        for key, value in state_dict.items()
        if not key.startswith("fc.")
    }
    prefixed = {f"{BACKBONE}{key}": value for key, value in renamed.items()}
    with_head = renamed | {"linear.weight": state_dict["fc.weight"]}
    for i, content in enumerate((state_dict, renamed, prefixed, with_head)):
        path = written(tmp_path, content, f"{i}.safetensors")
        loaded = detector.load_detector(model, "resnest14", path)
        assert detector.missing_heads(model, loaded) == detector.heads(model)
        for collection, tree in variables.items():
            expected = {name: leaves for name, leaves in tree.items() if name != "head"}
            assert_trees_equal(loaded[collection], {"backbone": expected})
    path = written(tmp_path, renamed | {"res3.0.conv2_offset.weight": np.zeros((18, 8, 3, 3))})
    with pytest.raises(InputError, match=r"unknown: res3\.0\.conv2_offset"):
        detector.load_detector(model, "resnest14", path)


@pytest.mark.parametrize(
    ("description", "new"),
    [
        ({"name": "faster_rcnn"}, ()),
        ({"name": "faster_rcnn", "num_classes": 5}, ("box_predictor",)),
        ({"name": "fcn"}, ("fpn", "rpn", "box_head", "box_predictor")),
    ],
)
def test_runs_of_detection_and_segmentation(small, description, new, tmp_path, monkeypatch):
    model, state_dict = small
    stored = resnest_jax.from_torch(state_dict, model)
    description = {"backbone": "resnest14"} | description
    monkeypatch.setattr(detector, "describe_directory", lambda path: (description, True))
    monkeypatch.setattr(detector, "restore_directory", lambda *_: (1, stored))
    model = model.clone(num_classes=description.get("num_classes", 3))
    loaded = detector.load_detector(model, "resnest14", str(tmp_path))
    assert detector.missing_heads(model, loaded) == new
    expected = {name: tree for name, tree in stored["params"].items() if name not in new}
    assert_trees_equal(loaded["params"], expected)
    with pytest.raises(InputError, match="have the backbone resnest14, not resnest50"):
        detector.load_detector(model, "resnest50", str(tmp_path))
