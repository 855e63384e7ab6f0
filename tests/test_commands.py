"""The commands, as a user runs them."""

import json
import os
import random
import subprocess
import sys

import commands
import cv2
import helpers
import numpy as np
import processes
import pytest
from commands import assert_one_line, environment

QUICK = [
    "--config=configs/digits.py",
    "--config.model.planes=(8, 8, 8, 8)",
    "--config.model.stem_width=4",
    "--config.epochs=1.0",
    "--config.batch_size=120",
    "--config.eval_every_epochs=0.25",
    "--config.log_every_steps=1",
]


def run(command, *args, **variables):
    """Run a command of the package to its end."""
    return commands.run(f"resnest_jax.{command}", *args, **variables)


def write_images(folder, count, size=40):
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(count):
        cv2.imwrite(str(folder / f"{i}.png"), rng.integers(0, 255, (size, size, 3), np.uint8))


def test_train_then_evaluate(tmp_path):
    command = [sys.executable, "-m", "resnest_jax.train", *QUICK, f"--workdir={tmp_path}/run"]
    trained = subprocess.run(
        command, cwd=helpers.ROOT, env=environment(), capture_output=True, text=True
    )
    assert trained.returncode == 0, trained.stderr
    for word in ("step 12/12", "images/s", "loss", "eval_top1"):
        assert word in trained.stdout
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    # Evaluation does not touch what a run may be writing.
    writing = tmp_path / "run" / "checkpoints" / "15.orbax-checkpoint-tmp"
    writing.mkdir()
    evaluated = run("evaluate", f"--workdir={tmp_path}/run")
    assert json.loads(evaluated.stdout)["eval_top1"] == summary["eval_top1"]
    assert writing.exists()


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("--config.optimiser.momentum=0.9", ["has no key 'optimiser'; its keys are augment"]),
        ("--config.optimizer.momentumm=0.9", ["config.optimizer has no key 'momentumm'", "decay"]),
        ("--config.seed.x=1", ["config.seed is 0 and has no keys"]),
        ("--config.mix=0.2", ["config.mix is a section", "such as --config.mix.cutmix=VALUE"]),
        ("--config.mix={'mixup': 0.2}", ["config.mix is a section"]),
        ("--config.model.expression=split", ["it is now config.model.implementation"]),
        ("--config.image_size=large", ["config.image_size must be an integer or", "'large'"]),
        ("--config.model.name=resnest51", ["unknown model 'resnest51'", "resnest50"]),
        ("--config.batch_size=many", ["batch_size", "many"]),
        ("--config.batch_size=121", ["batch_size 121", "2 devices"]),
        ("--config.dataset=no_such_set", ["no_such_set"]),
        ("--config.dataset=folder:/no/such/folder", ["/no/such/folder"]),
        ("--workdir=/dev/null/run", ["/dev/null/run", "cannot be written"]),
        ("--config=configs/no_such_config.py", ["no_such_config.py"]),
        ("--config=configs/imagenet.py:resnest51", ["imagenet.py:resnest51: no ", "resnest50"]),
        ("stray", ["stray"]),
    ],
)
def test_bad_input_is_one_line(argument, words, tmp_path):
    assert_one_line(run("train", *QUICK, f"--workdir={tmp_path}/run", argument), *words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("config.update({'optimizer': {'momentumm': 0.9}})", ['"momentumm" does not exist. Did']),
        ("config.optimizer.momentumm = 0.9", ['"momentumm" does not exist. Did you mean']),
        ("config.update({'batch_size': 'many'})", ["batch_size", "many"]),
        ("config = default_config('pose')", ["config.task must be one of", "got 'pose'"]),
    ],
)
def test_a_bad_recipe_is_one_line(change, words, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from resnest_jax.config import default_config\n\n\n"
        "def get_config():\n"
        "    config = default_config('classification')\n"
        f"    {change}\n"
        "    return config\n"
    )
    result = run("train", f"--config={tmp_path}/mine.py", f"--workdir={tmp_path}/run")
    assert_one_line(result, "mine.py", *words)


@pytest.mark.parametrize("command", ["train", "predict"])
def test_help_lists_the_flags_of_the_command(command):
    flags = {
        "train": ("--config", "--workdir", "--[no]dry_run"),
        "predict": ("--explain", "--model", "--checkpoint", "--tta", "--predictions"),
    }[command]
    short = run(command, "--help")
    assert short.returncode == 1
    assert not short.stderr
    assert all(flag in short.stdout for flag in flags)
    assert f"resnest_jax.{command} --" in short.stdout
    assert "--verbosity" not in short.stdout
    full = run(command, "--helpfull")
    assert all(flag in full.stdout for flag in (*flags, "--verbosity"))


def test_bad_folders_are_one_line(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    corrupt = tmp_path / "corrupt"
    for name in ("cat", "dog"):
        write_images(corrupt / name, 10)
    (corrupt / "dog" / "3.png").write_bytes(b"\x89PNG not really")
    for folder, words in ((empty, [str(empty)]), (corrupt, ["dog/3.png"])):
        result = run(
            "train",
            *QUICK,
            f"--workdir={tmp_path}/run",
            f"--config.dataset=folder:{folder}",
            "--config.batch_size=4",
        )
        assert_one_line(result, *words)


def test_one_image_cannot_train(tmp_path):
    args = [*QUICK, f"--workdir={tmp_path}/run", "--config.batch_size=1"]
    result = run("train", *args, devices=1)
    assert_one_line(result, "single value per channel", "batch size of at least 2")


def test_folder_of_images_trains(tmp_path):
    for split, count in (("train", 6), ("val", 3)):
        for name in ("cat", "dog"):
            write_images(tmp_path / split / name, count)
    result = run(
        "train",
        *QUICK,
        f"--workdir={tmp_path}/run",
        f"--config.dataset=folder:{tmp_path}",
        "--config.batch_size=4",
        "--config.augment.flip=True",
        "--config.loader.workers=1",
    )
    assert result.returncode == 0, result.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["step"] == 3


@pytest.mark.parametrize("kills", [1, pytest.param(6, marks=pytest.mark.slow)])
def test_killed_run_is_the_same(kills, tmp_path):
    """Killed at random moments after its first line of progress."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run("train", *QUICK, f"--workdir={whole}").returncode == 0
    args, rng = [*QUICK, f"--workdir={killed}"], random.Random(kills)
    for _ in range(kills):
        processes.kill_run(args, devices=2, seconds=rng.uniform(0, 1.5))
    result = run("train", *args)
    assert result.returncode == 0, result.stderr
    processes.assert_same_run(killed, whole)
    assert len(processes.stored_arrays(whole)) > 200


def test_compiled_programs_are_kept_in_the_users_cache(tmp_path):
    code = (
        "import jax; from absl import flags; from resnest_jax import cli\n"
        "cli.run(lambda _: print(jax.jit(abs)(-1)), flags.FlagValues())"
    )
    for home, chosen, expected in (
        (tmp_path / "cache", None, tmp_path / "cache" / "resnest_jax"),
        (tmp_path / "unused", tmp_path / "mine", tmp_path / "mine"),
        ("/dev/null", None, None),  # not writable: nothing is kept
    ):
        variables = os.environ | {"XDG_CACHE_HOME": str(home)}
        variables |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        variables.pop("JAX_COMPILATION_CACHE_DIR", None)
        if chosen:
            variables["JAX_COMPILATION_CACHE_DIR"] = str(chosen)
        command = [sys.executable, "-c", code]
        result = subprocess.run(
            command, cwd=helpers.ROOT, env=variables, capture_output=True, text=True
        )
        assert (result.returncode, result.stdout) == (0, "1\n"), result.stderr
        assert expected is None or any(expected.iterdir())
    assert not (tmp_path / "unused").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_memory_of_a_program_is_kept_from_call_to_call():
    """After the first calls, 64 MB of intermediate results take no new pages of the system."""
    code = """
import jax, jax.numpy as jnp, resource
from absl import flags
from resnest_jax import cli

def main(_):
    call = jax.jit(lambda x: jax.lax.optimization_barrier(jnp.sin(x)).sum())
    x = jnp.ones(2**24)
    for _ in range(8):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        call(x).block_until_ready()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

cli.run(main, flags.FlagValues())
"""
    variables = os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=helpers.ROOT,
        env=variables,
        capture_output=True,
        text=True,
    )
    first, *later = map(int, result.stdout.split())
    assert first > 2**14, result.stderr
    assert min(later) < 2**10, result.stdout
