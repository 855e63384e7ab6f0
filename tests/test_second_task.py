"""The trainer runs the task of tests/pixel_task.py without changes."""

import os
import subprocess
import sys
import time

import helpers
import jax
import numpy as np
import pixel_task
import pytest

from resnest_jax.training.curves import plot_curves
from resnest_jax.training.evaluation import make_evaluate
from resnest_jax.training.metric_writer import read_metrics
from resnest_jax.training.state import initial_state
from resnest_jax.training.step import jit_train_step

SCRIPT = str(helpers.ROOT / "tests" / "pixel_task.py")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("pixels")
    return workdir, pixel_task.train(workdir)


def test_it_learns_logs_and_draws(whole):
    workdir, summary = whole
    lines = read_metrics(workdir)
    logged = [line for line in lines if "loss" in line]
    assert logged[-1]["loss"] < 0.5 * logged[0]["loss"]
    # A line has the mean of two steps: the first (0 + 1) / 2 / 24.
    assert logged[0]["progress"] == pytest.approx(1 / 48)
    assert all(line["worst"] > line["loss"] for line in logged)
    assert summary["best_eval_score"] == max(line.get("eval_score", -9) for line in lines)
    plot_curves(workdir, pixel_task.make_run())
    assert (workdir / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_its_metric_against_numpy(whole):
    """The same image by image, without devices, padding or processes."""
    workdir, summary = whole
    run = pixel_task.make_run()
    checkpoints = pixel_task.Checkpoints(
        workdir, keep_last=2, best_metric=run.task.best_metric, read_only=True
    )
    with checkpoints:
        state, _ = checkpoints.restore(initial_state(run))
    variables = jax.device_get(state.variables)
    errors, bright = [], []
    for index in range(pixel_task.NUM_EVAL):
        size = pixel_task.SIZE
        image = np.random.default_rng(1000 + index).random((size, size, 3), np.float32)
        image = image ** (1 + (1000 + index) % 3)
        found = np.asarray(run.task.model.apply(variables, image[None]))[0]
        errors.append(np.mean((found - image.max(-1)) ** 2))
        bright += sorted(found[found > pixel_task.BRIGHT], reverse=True)[: pixel_task.MOST]
    assert summary["eval_score"] == pytest.approx(-np.mean(errors), rel=1e-4)
    assert summary["eval_bright"] == pytest.approx(np.median(bright), rel=1e-4)
    assert abs(summary["eval_listed"] - len(bright)) <= 1  # one may lie on the border
    assert make_evaluate(run)(state)["eval_score"] == summary["eval_score"]


def test_accumulated_metrics_are_means_over_the_parts():
    run, parts = pixel_task.make_run(), pixel_task.make_run(accumulate=2)
    batch = next(run.batches.train(0))
    shard = jax.device_put
    whole, split = (jit_train_step(r)(initial_state(r), shard(batch))[1] for r in (run, parts))
    assert float(split["progress"]) == float(whole["progress"])
    assert float(split["worst"]) == pytest.approx(float(whole["worst"]), rel=0.2)


def start(workdir, devices, **variables):
    flags = {"XLA_FLAGS": helpers.xla_flags(devices)}
    command = [sys.executable, SCRIPT, str(workdir)]
    return subprocess.Popen(
        command, cwd=helpers.ROOT, env=os.environ | flags | variables, stdout=subprocess.DEVNULL
    )


def test_killed_and_resumed_it_is_the_same(tmp_path):
    assert start(tmp_path / "whole", 2).wait(120) == 0
    process = start(tmp_path / "killed", 2)
    metrics = tmp_path / "killed" / "metrics.jsonl"
    while not (metrics.exists() and '"step": 8,' in metrics.read_text()):
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert start(tmp_path / "killed", 2).wait(120) == 0
    assert metrics.read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()


def test_two_processes_equal_one(whole, tmp_path):
    pair = [
        start(tmp_path / "pair", 4, **variables) for variables in helpers.process_variables(count=2)
    ]
    assert [process.wait(120) for process in pair] == [0, 0]
    one, two = read_metrics(whole[0]), read_metrics(tmp_path / "pair")
    assert len(one) == len(two)
    for before, after in zip(one, two, strict=True):
        assert before.keys() == after.keys()
        for name in before.keys() - {"eval_listed"}:
            assert after[name] == pytest.approx(before[name], rel=1e-3), name
