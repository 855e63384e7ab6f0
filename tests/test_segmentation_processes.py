"""Segmentation in two processes of two devices is that in one process of four."""

import json
import subprocess
import sys

import helpers
import pytest
import segmentation_data
from commands import environment

from resnest_jax.training.metric_writer import read_metrics

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("processes")]


def run(count, command, *args):
    """Run a command in this many processes; return the output of the first."""
    several = helpers.process_variables(count) if count > 1 else [{}]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", f"resnest_jax.{command}", *map(str, args)],
            cwd=helpers.ROOT,
            env=environment(4 // count) | variables,
            stdout=subprocess.PIPE,
            text=True,
        )
        for variables in several
    ]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * count
    return outputs[0]


def figures(output):
    """Return the JSON at the end of an output."""
    return json.loads(output[output.index("{") :])


def test_two_processes_equal_one(tmp_path):
    """In the first steps, and in both evaluations of a checkpoint, of five images."""
    segmentation_data.write_folder(tmp_path / "data")
    config = segmentation_data.tiny_config(tmp_path / "data", evaluation__scales=(0.75, 1.5))
    file = tmp_path / "config.py"
    file.write_text(
        "from resnest_jax.config import complete\n"
        f"def get_config(): return complete({config.to_dict()})"
    )
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
