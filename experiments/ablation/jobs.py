"""Run a job of a sweep, in its own process or through submitit.

    python -m experiments.ablation.jobs FOLDER

FOLDER holds ``job.json``, the config; the run writes ``result.json`` or ``failure.json``.
"""

import contextlib
import fcntl
import importlib.metadata
import json
import os
import platform
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
from ml_collections import ConfigDict

from resnest_jax import cli, recipe, runs
from resnest_jax.config import complete
from resnest_jax.errors import InputError, one_line
from resnest_jax.files import write_json
from resnest_jax.training.state import abstract_state

JOB, RESULT, FAILURE, LOG = "job.json", "result.json", "failure.json", "log.txt"
PACKAGES = ("jax", "flax", "optax", "numpy")
EXECUTORS = ("process", "local", "slurm")

# launch(folder) waits for the run; it returns an error of the process itself, or None.
Launch = Callable[[Path], str | None]


def run_one(folder: Path) -> None:
    """Train the job in a folder; a finished job is left as it is."""
    cli.set_up_jax()
    with _locked(folder):
        if (folder / RESULT).exists():
            return
        config = complete(json.loads((folder / JOB).read_text()))
        try:
            summary = runs.train(config, folder)
        except Exception as error:
            traceback.print_exc()
            write_json(folder / FAILURE, {"error": f"{type(error).__name__}: {brief(error)}"})
            return
        (folder / FAILURE).unlink(missing_ok=True)
        write_json(folder / RESULT, {"summary": summary, **provenance()})


def check(configs: dict[str, ConfigDict]) -> dict[str, int]:
    """Build the run of each cell as ``run_one`` would; return its number of classes.

    Raises:
      InputError: for the first cell whose run would fail at its start; the message names it.
    """
    classes = {}
    for cell, config in configs.items():
        try:
            run = recipe.build(config)
            abstract_state(run)
        except InputError as error:
            raise InputError(f"cell {cell}: {error}") from None
        classes[cell] = len(run.batches.class_names)
    return classes


def provenance() -> dict[str, str]:
    """Return the versions, commit and device that compute a result."""
    versions = [f"{name} {importlib.metadata.version(name)}" for name in PACKAGES]
    return {
        "versions": ", ".join([f"Python {platform.python_version()}", *versions]),
        "commit": _commit(),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }


def _commit() -> str:
    """Return the commit of this checkout, with "-dirty" if files differ; empty outside git."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def brief(error: object) -> str:
    """Return the message of an error as one line of at most 300 characters."""
    text = one_line(error)
    return text if len(text) <= 300 else f"{text[:299]}…"


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock the folder; wait for a process that a killed sweep left behind."""
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def make_launch(executor: str, workdir: Path, options: list[str]) -> Launch:
    """Return the function that starts a run: ``process``, or submitit's ``local`` or ``slurm``.

    Raises:
      InputError: if submitit is missing or refuses the options.
    """
    if executor == "process":
        if options:
            raise InputError(f"--submitit needs --executor=local or slurm; got {options}")
        return lambda folder: _launch_process(folder, workdir)
    return _submitit_launch(executor, workdir, options)


def _launch_process(folder: Path, workdir: Path) -> str | None:
    # Shared, so that the next seed of a cell does not compile again.
    cache = {"JAX_COMPILATION_CACHE_DIR": str(workdir.resolve() / "compiled")}
    with (folder / LOG).open("a") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "experiments.ablation.jobs", str(folder)],
            stdin=subprocess.PIPE,  # it closes when the sweep ends
            stdout=log,
            stderr=subprocess.STDOUT,
            env=cache | os.environ,
        )
        with process:
            code = process.wait()
    if code < 0:
        hint = "; it may have run out of memory" if code == -signal.SIGKILL else ""
        return f"killed by {signal.Signals(-code).name}{hint}"
    return f"exit code {code}, see {folder / LOG}" if code else None


def _submitit_launch(cluster: str, workdir: Path, options: list[str]) -> Launch:
    try:
        import submitit
    except ImportError:
        raise InputError(
            f"--executor={cluster} needs submitit: pip install 'resnest_jax[slurm]'"
        ) from None
    parameters = {"timeout_min": 24 * 60}
    for option in options:
        name, _, value = option.partition("=")
        parameters[name] = int(value) if value.isdecimal() else value
    try:
        executor = submitit.AutoExecutor(workdir / "submitit", cluster=cluster)
        executor.update_parameters(**parameters)
    except Exception as error:
        raise InputError(f"--submitit: {brief(error)}") from None
    submitting = threading.Lock()

    def launch(folder: Path) -> str | None:
        with submitting:
            job = executor.submit(run_one, folder.resolve())
        error = job.exception()  # waits
        return brief(error) if error else None

    return launch


def _end_with_parent() -> None:
    """Exit as soon as the sweep ends, even killed: standard input then closes."""

    def watch():
        # Not sys.stdin: this thread would hold its lock when the interpreter exits.
        os.read(0, 1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    _end_with_parent()
    run_one(Path(sys.argv[1]))
