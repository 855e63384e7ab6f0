"""Detection in two processes of two devices is that in one process of four; a killed run."""

import json

import detection_data
import numpy as np
import pytest
from processes import assert_same_run, figures, kill_run, run, write_config
from pycocotools import mask as coco

from resnest_jax.training.metric_writer import read_metrics

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("processes")]


MODELS = ("faster_rcnn", "mask_rcnn", "cascade_mask_rcnn")


@pytest.fixture(scope="module", params=MODELS)
def whole(tmp_path_factory, request):
    """The arguments of a run of two canvases, and its folder."""
    folder = tmp_path_factory.mktemp(request.param)
    detection_data.write_coco(folder / "data", train=24)
    values = {"steps": 12, "eval_every_steps": 4, "recompute_batch_norm": 2}
    values["model__name"] = request.param
    write_config(folder / "config.py", detection_data.tiny_config(folder / "data", **values))
    flag = f"--config={folder / 'config.py'}"
    run(1, "train", flag, f"--workdir={folder / 'whole'}")
    return flag, folder / "whole"


def test_killed_and_resumed_it_is_the_same(whole, tmp_path):
    """Bit for bit."""
    args = [whole[0], f"--workdir={tmp_path / 'run'}"]
    kill_run(args, devices=4, line="step 9/")
    assert "resuming after step" in run(1, "train", *args)
    assert_same_run(tmp_path / "run", whole[1])


def test_two_processes_equal_one(whole, tmp_path):
    """In the first steps, and in the evaluations of a checkpoint, of five images."""
    flag, workdir = whole
    run(2, "train", flag, f"--workdir={tmp_path / 'run'}")
    one, two = read_metrics(workdir), read_metrics(tmp_path / "run")
    assert [line["step"] for line in one] == [line["step"] for line in two]
    for before, after in zip(one[:2], two[:2], strict=True):  # training amplifies rounding
        names = [name for name in before if "loss" in name or name == "grad_norm"]
        assert len(names) > 5
        for name in names:
            assert after[name] == pytest.approx(before[name], rel=1e-3), name
    for kind in ("--nomulti_scale", "--multi_scale"):
        assert_same_evaluation(workdir, tmp_path, kind)


def assert_same_evaluation(workdir, tmp_path, kind):
    outputs = [tmp_path / f"evaluation {count} {kind}" for count in (1, 2)]
    first, second = (
        figures(run(count, "evaluate", f"--workdir={workdir}", f"--output={output}", kind))
        for count, output in zip((1, 2), outputs, strict=True)
    )
    assert second == pytest.approx(first, abs=1e-6)
    results = [json.loads((output / "results.json").read_text()) for output in outputs]
    assert {entry["image_id"] for entry in results[0]} == {*range(100, 105)}
    for one, two in zip(*results, strict=True):
        assert (two["image_id"], two["category_id"]) == (one["image_id"], one["category_id"])
        assert two["score"] == pytest.approx(one["score"], abs=1e-4)
        assert two["bbox"] == pytest.approx(one["bbox"], abs=1e-2)
        assert ("segmentation" in one) == ("mask" in workdir.parent.name)
        if "segmentation" in one:
            masks = [coco.decode(entry["segmentation"]) for entry in (one, two)]
            assert np.mean(masks[0] != masks[1]) < 0.01
