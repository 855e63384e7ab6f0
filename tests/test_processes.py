"""Runs of two processes with two devices each; also when one is stopped or killed."""

import json
import random
import signal
import subprocess
import sys
import time

import helpers
import numpy as np
import pytest
from commands import environment
from processes import assert_same_run
from test_commands import QUICK, run

# With statistics per device a step has one collective, not one per norm.
FLAGS = [*QUICK, "--config.parallel.batch_norm=device"]
COMMAND = [sys.executable, "-m", "resnest_jax.train", *FLAGS]
FOUR_DEVICES = {"XLA_FLAGS": helpers.xla_flags(4)}
# One worker runs them all, because they share an uninterrupted run.
pytestmark = pytest.mark.xdist_group("processes")


def start_pair(workdir, *args):
    """Start the two processes of a run on this machine."""
    processes = []
    for index, variables in enumerate(helpers.process_variables(count=2)):
        with workdir.with_name(f"{workdir.name}.{index}.log").open("a") as log:
            processes.append(
                subprocess.Popen(
                    [*COMMAND, f"--workdir={workdir}", *args],
                    cwd=helpers.ROOT,
                    env=environment() | variables,
                    stdout=log,
                    stderr=log,
                )
            )
    return processes


def finish(processes):
    """Return the exit codes of both, within a time limit."""
    try:
        return [process.wait(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()


def wait_for(path, text, process):
    """Wait until a file holds a text."""
    while not (path.exists() and text in path.read_text()):
        assert process.poll() is None, path.read_text() if path.exists() else path
        time.sleep(0.05)


def metrics_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole_pair(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("pair") / "run"
    assert finish(start_pair(workdir)) == [0, 0]
    return workdir


def test_two_processes_equal_one(whole_pair, tmp_path):
    """The first losses are equal to rounding; training amplifies the differences later."""
    subprocess.run(
        [*COMMAND, f"--workdir={tmp_path}/one"],
        cwd=helpers.ROOT,
        env=environment() | FOUR_DEVICES,
        check=True,
    )
    one, two = metrics_of(tmp_path / "one"), metrics_of(whole_pair)
    assert [line["step"] for line in one] == [line["step"] for line in two]
    for before, after in zip(one[:3], two[:3], strict=True):
        np.testing.assert_allclose(after["loss"], before["loss"], rtol=1e-5)


def kill_one(workdir, rng):
    """kill -9 one of the processes at a random moment; the other ends soon."""
    log = workdir.with_name(f"{workdir.name}.0.log")
    log.write_text("")
    pair = start_pair(workdir)
    wait_for(log, "step ", pair[0])
    time.sleep(rng.uniform(0, 3))
    victim = rng.randrange(2)
    pair[victim].kill()
    codes = finish(pair)
    assert codes[victim] in (-signal.SIGKILL, 0)  # 0: it had already ended
    if codes[victim]:
        # JAX ends a process itself if it notices first that the coordinator is gone.
        assert codes[1 - victim] in (1, -signal.SIGABRT)


@pytest.mark.slow
def test_stopped_and_killed_pair_resumes_bit_for_bit(whole_pair, tmp_path):
    workdir, log = tmp_path / "run", tmp_path / "run.0.log"
    pair = start_pair(workdir)
    wait_for(log, "step 3/", pair[0])
    pair[1].terminate()  # SIGTERM to one stops both
    assert finish(pair) == [143, 143]
    assert "stopped: got SIGTERM after step" in log.read_text()
    kill_one(workdir, random.Random(0))
    assert finish(start_pair(workdir, "--config.loader.workers=1")) == [0, 0]
    assert_same_run(workdir, whole_pair)


@pytest.mark.slow
def test_pair_killed_five_times_resumes_bit_for_bit(whole_pair, tmp_path):
    rng = random.Random(5)
    for _ in range(5):
        kill_one(tmp_path / "run", rng)
    assert finish(start_pair(tmp_path / "run")) == [0, 0]
    assert_same_run(tmp_path / "run", whole_pair)


def test_sigterm_stores_the_step_under_way(tmp_path):
    """Stopped in the middle of an epoch and of a line of metrics, a run has the same result."""
    args = ["--config.log_every_steps=5", "--config.eval_every_epochs=1.0"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    subprocess.run(
        [*COMMAND, *args, f"--workdir={whole}"], cwd=helpers.ROOT, env=environment(), check=True
    )
    command = [*COMMAND, *args, f"--workdir={stopped}"]
    process = subprocess.Popen(
        command, cwd=helpers.ROOT, env=environment(), stderr=subprocess.PIPE, text=True
    )
    wait_for(stopped / "metrics.jsonl", '"step": 5', process)
    process.terminate()
    errors = process.communicate(timeout=120)[1]
    assert process.returncode == 143, errors
    assert "stopped: got SIGTERM after step" in errors
    assert "Traceback" not in errors
    subprocess.run(command, cwd=helpers.ROOT, env=environment(), check=True)
    assert_same_run(stopped, whole)


@pytest.mark.parametrize(
    "variables",
    [
        {"JAX_COORDINATOR_ADDRESS": "127.0.0.1:1"},
        {
            "JAX_COORDINATOR_ADDRESS": "127.0.0.1:1",
            "JAX_NUM_PROCESSES": "two",
            "JAX_PROCESS_ID": "0",
        },
    ],
)
def test_half_a_description_of_the_processes_is_refused(variables, tmp_path):
    result = run("train", *FLAGS, f"--workdir={tmp_path}/run", **variables)
    assert result.returncode == 1
    assert (
        "JAX_NUM_PROCESSES=N and JAX_PROCESS_ID=I with I from 0 to N - 1, or only" in result.stderr
    )
