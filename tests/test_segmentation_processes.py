"""Segmentation in two processes of two devices is that in one process of four."""

import pytest
import segmentation_data
from processes import figures, run, write_config

from resnest_jax.training.metric_writer import read_metrics

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("processes")]


def test_two_processes_equal_one(tmp_path):
    """In the first steps, and in both evaluations of a checkpoint, of five images."""
    segmentation_data.write_folder(tmp_path / "data")
    config = segmentation_data.tiny_config(tmp_path / "data", evaluation__scales=(0.75, 1.5))
    file = tmp_path / "config.py"
    write_config(file, config)
    for count in (1, 2):
        run(count, "train", f"--config={file}", f"--workdir={tmp_path / str(count)}")
    one, two = (read_metrics(tmp_path / str(count)) for count in (1, 2))
    assert [line["step"] for line in one] == [line["step"] for line in two]
    for before, after in zip(one[:3], two[:3], strict=True):  # training amplifies rounding
        for name in ("loss", "auxiliary_loss", "grad_norm"):
            assert after[name] == pytest.approx(before[name], rel=1e-4), name
    for kind in ("--nomulti_scale", "--multi_scale"):
        evaluation = ("evaluate", f"--workdir={tmp_path / '1'}", kind)
        first, second = (figures(run(count, *evaluation)) for count in (1, 2))
        assert second == pytest.approx(first, abs=1e-6), kind
        assert first["eval_miou"] > 0.2  # one class alone has 0.13
