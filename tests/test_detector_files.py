"""Files and directories of detectors: what they hold is seen, or they say it."""

from pathlib import Path

import detection_data as data
import detector_golden
import numpy as np
import pytest
from commands import assert_one_line, run
from test_segmentation_weights import assert_holds, entries

from resnest_jax.data.coco import coco_classes
from resnest_jax.errors import InputError
from resnest_jax.tasks.detection import evaluate
from resnest_jax.weights.card import Card
from resnest_jax.weights.conversion import convert
from resnest_jax.weights.detection import load_weights, recognise
from resnest_jax.weights.detectron import ANCHORS, BACKBONE, CLASSES, PREDICTOR
from resnest_jax.weights.formats import write_file
from resnest_jax.weights.published import DETECTORS
from resnest_jax.weights.recognition import find_task

FIELDS = {"backbone": "resnest14", "num_classes": 2, "features": 8, "hidden": 16}
FIELDS |= {"anchor_sizes": (8.0, 16.0, 24.5, 64.0, 100.0), "anchor_ratios": (0.333333, 1.0)}


@pytest.fixture(scope="module")
def detector():
    return entries("faster_rcnn", **FIELDS)


@pytest.fixture(scope="module")
def plain(detector, tmp_path_factory):
    """A file that does not describe its model."""
    path = tmp_path_factory.mktemp("weights") / "plain.safetensors"
    write_file(path, detector)
    return path


def authors_entries(name):
    """Return entries of the authors' own list; anchors are left out, as their values are."""
    rows = detector_golden.load("state_dicts.json.gz")[name]["rows"]
    return {k: np.broadcast_to(np.float32(0), s) for k, s, _ in rows if ANCHORS not in k}


@pytest.mark.parametrize("name", detector_golden.MODELS)
def test_the_authors_own_list_of_entries_is_recognised(name):
    expected = {"name": detector_golden.MODELS[name], "backbone": "resnest50", "num_classes": 80}
    expected |= {"features": 256, "hidden": 1024}
    if "mask" in name:
        expected |= {"mask_convolutions": 4}
    assert recognise(Path("any.pth"), authors_entries(name)) == expected


def test_other_files_are_refused():
    entries = authors_entries("faster50")
    del entries[CLASSES]
    with pytest.raises(InputError, match=f"x.pth are not of a detector .* there is no {CLASSES}"):
        recognise(Path("x.pth"), entries)


def test_a_wrapped_file_is_recognised(detector, tmp_path):
    """Widths and anchors too."""
    path = tmp_path / "w.safetensors"
    write_file(path, {f"module.{k}": v for k, v in detector.items() if "num_batches" not in k})
    assert find_task(None, str(path)) == find_task("faster_rcnn", None) == "detection"
    found = load_weights(None, str(path))
    assert {key: found.description[key] for key in FIELDS} == FIELDS
    assert found.about == "faster_rcnn on resnest14, 2 classes"
    assert found.class_names == ("class 0", "class 1")
    config = found.config
    assert (config.evaluation.short_side, config.data.long_side) == (800, 1333)
    assert (config.dataset, found.step) == ("", None)
    assert_holds(found, detector)


def test_conversion_and_back(plain, detector, tmp_path):
    (tmp_path / "names.txt").write_text("cat\ndog")
    named, folder = tmp_path / "named.safetensors", tmp_path / "folder"
    line = convert(None, str(plain), named, class_names=str(tmp_path / "names.txt"))
    assert f"faster_rcnn on resnest14, 2 classes, {len(detector)} entries" in line
    convert("faster_rcnn", str(named), folder)
    for path in (named, folder):
        found = load_weights(None, str(path), backbone="resnest14")
        assert found.class_names == ("cat", "dog")
        assert_holds(found, detector)


def test_a_published_file_has_the_classes_of_coco(plain, tmp_path):
    names = coco_classes()
    assert (len(names), names[0], names[16], names[-1]) == (80, "person", "dog", "toothbrush")
    path = tmp_path / f"{DETECTORS[0]}.pth"
    path.write_bytes(plain.read_bytes())
    with pytest.raises(InputError, match="have 2 classes, but 80 names"):
        load_weights(None, str(path))
    with pytest.raises(InputError, match="class_names coco has 80 names, but the weights have 2"):
        convert(None, str(plain), tmp_path / "out", class_names="coco")


def test_detectron2_files_in_and_out(plain, detector, tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "model_final.pth"
    convert(None, str(plain), path)
    content = torch.load(path, weights_only=True)
    assert list(content) == list(detector)
    torch.save({"model": content, "optimizer": {"state": {}}, "iteration": 90_000}, path)
    assert find_task(None, str(path)) == "detection"
    assert_holds(load_weights(None, str(path)), detector)


def test_fields_that_no_entry_shows_travel(tmp_path):
    """A backbone not of the zoo, the sizes of the test images, how detections are selected."""
    fields = FIELDS | {"planes": (8, 8, 8, 8), "stem_width": 4, "detections": 7}
    fields |= {"score_threshold": 0.5}
    state_dict = entries("faster_rcnn", **fields)
    views = {"view_sides": (48, 80), "view_long_side": 128, "flip": False}
    card = Card(("cat", "dog"), short_side=64, long_side=96, **views)
    write_file(tmp_path / "a.safetensors", state_dict, card, {"name": "faster_rcnn"} | fields)
    convert(None, str(tmp_path / "a.safetensors"), tmp_path / "folder")
    found = load_weights(None, str(tmp_path / "folder"))
    assert (found.config.evaluation.short_side, found.config.evaluation.long_side) == (64, 96)
    assert found.config.evaluation.view_sides == (48, 80)
    assert not found.config.data.flip
    assert (found.model.detections, found.model.score_threshold) == (7, 0.5)
    assert found.full_card == card
    assert_holds(found, state_dict)


def test_what_is_asked_for_must_be_there(plain, detector, tmp_path):
    for (name, weights), message in {
        ("fcn", str(plain)): "are those of faster_rcnn, not of fcn",
        ("faster_rcnn", None): r"weights of faster_rcnn cannot be fetched: give the file, .*\.pth",
        (None, str(tmp_path / "none.pth")): "no such file",
    }.items():
        with pytest.raises(InputError, match=message):
            load_weights(name, weights)
    with pytest.raises(InputError, match="only a run has checkpoints"):
        load_weights(None, str(plain), "best")
    key = f"{BACKBONE}res3.0.conv2_offset.weight"  # deformable convolutions
    write_file(tmp_path / "odd.safetensors", detector | {key: np.zeros((18, 64, 3, 3))})
    with pytest.raises(InputError, match=r"odd.safetensors is none of the zoo; .* --backbone"):
        load_weights(None, str(tmp_path / "odd.safetensors"))
    with pytest.raises(InputError, match=f"unknown: {key}"):
        load_weights(None, str(tmp_path / "odd.safetensors"), backbone="resnest14")
    odd = detector | {"roi_heads.mask_head.deconv.weight": np.zeros(3)}
    odd |= {f"{PREDICTOR}bbox_pred.weight": np.zeros((4, 16))}
    del odd[f"{PREDICTOR}bbox_pred.bias"]
    write_file(tmp_path / "odd.safetensors", odd)
    wrong = rf"missing: {PREDICTOR}bbox_pred.bias; unknown: roi_heads.mask_head.*; .* \(8, 16\)"
    with pytest.raises(InputError, match=wrong):
        load_weights(None, str(tmp_path / "odd.safetensors"))


def test_commands_take_files(plain, tmp_path):
    data.write_coco(tmp_path)
    other = run("resnest_jax.evaluate", f"--weights={plain}", f"--dataset=coco:{tmp_path}")
    assert_one_line(other, "it has 3 classes, but the weights", "plain.safetensors have 2")
    detector = load_weights(None, str(plain))
    with pytest.raises(InputError, match="dataset is missing: give --dataset, scenes or coco:PATH"):
        evaluate.run(detector)
