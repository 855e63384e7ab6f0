"""Detection in two processes of two devices is that in one process of four."""

import json

import detection_data
import pytest
from processes import figures, run, write_config

from resnest_jax.training.metric_writer import read_metrics

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("processes")]


def test_two_processes_equal_one(tmp_path):
    """In the first steps, and in the evaluation of a checkpoint, of five images."""
    detection_data.write_coco(tmp_path / "data", train=24)
    config = detection_data.tiny_config(tmp_path / "data")
    file = tmp_path / "config.py"
    write_config(file, config)
    for count in (1, 2):
        run(count, "train", f"--config={file}", f"--workdir={tmp_path / str(count)}")
    one, two = (read_metrics(tmp_path / str(count)) for count in (1, 2))
    assert [line["step"] for line in one] == [line["step"] for line in two]
    for before, after in zip(one[:2], two[:2], strict=True):  # training amplifies rounding
        for name in ("loss", "loss_rpn_cls", "loss_box_reg", "grad_norm"):
            assert after[name] == pytest.approx(before[name], rel=1e-3), name
    outputs = [tmp_path / f"evaluation {count}" for count in (1, 2)]
    first, second = (
        figures(run(count, "evaluate", f"--workdir={tmp_path / '1'}", f"--output={output}"))
        for count, output in zip((1, 2), outputs, strict=True)
    )
    assert second == pytest.approx(first, abs=1e-6)
    results = [json.loads((output / "results.json").read_text()) for output in outputs]
    assert {entry["image_id"] for entry in results[0]} == {*range(100, 105)}
    for one, two in zip(*results, strict=True):
        assert (two["image_id"], two["category_id"]) == (one["image_id"], one["category_id"])
        assert two["score"] == pytest.approx(one["score"], abs=1e-4)
        assert two["bbox"] == pytest.approx(one["bbox"], abs=1e-2)
