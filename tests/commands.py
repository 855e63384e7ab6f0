"""Run commands as ``python -m`` does, in a copy of a process that has imported what they import.

Tests call ``run``; each test process keeps one such server, which forks for every command.
"""

import atexit
import functools
import gc
import importlib
import json
import os
import pathlib
import runpy
import signal
import subprocess
import sys
import tempfile
import warnings

import helpers

# Of the project, what no command replaces by itself; of others, what takes long to import.
IMPORTED = (
    "resnest_jax.cli",
    "resnest_jax.dry_run",
    "resnest_jax.runs",
    "resnest_jax.tasks.classification.evaluate",
    "resnest_jax.tasks.classification.predict",
    "matplotlib.pyplot",
    "sklearn.datasets",
    "tensorflow_datasets",
)
SECONDS = 300


def environment(devices: int = 2, **variables: str) -> dict[str, str]:
    """Return the environment of a command that sees this many devices."""
    return os.environ | {"XLA_FLAGS": helpers.xla_flags(devices)} | variables


def run(module, *args, devices=2, cwd=helpers.ROOT, **variables) -> subprocess.CompletedProcess:
    """Run ``python -m module *args`` to its end; variables of JAX but XLA_FLAGS have no effect."""
    with tempfile.TemporaryDirectory() as folder:
        request = {
            "module": module,
            "argv": [module, *map(str, args)],
            "cwd": str(cwd),
            "environment": environment(devices, **variables),
            "out": f"{folder}/out",
            "err": f"{folder}/err",
        }
        server = _server()
        print(json.dumps(request), file=server.stdin, flush=True)
        code = int(server.stdout.readline())
        texts = (pathlib.Path(request[key]).read_text(errors="replace") for key in ("out", "err"))
        return subprocess.CompletedProcess(request["argv"], code, *texts)


def assert_one_line(result, *words):
    """Check that a command failed with one line of error, which has these words."""
    assert result.returncode == 1, result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, result.stderr
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in errors[0], result.stderr


@functools.cache
def _server() -> subprocess.Popen:
    server = subprocess.Popen(
        [sys.executable, __file__],
        env=os.environ | {"PYTHONPATH": str(helpers.ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(server.communicate)  # its input ends, and so does it
    return server


def _next_command() -> dict:
    """Answer requests until the input ends; return one in each forked process."""
    for line in sys.stdin:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # threads of NumPy's BLAS
            child = os.fork()
        if not child:
            return json.loads(line)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
    raise SystemExit


def _become(request: dict) -> None:
    """Make this process what a new one would be."""
    signal.alarm(SECONDS)
    for number, (name, mode) in enumerate(
        ((os.devnull, os.O_RDONLY), (request["out"], os.O_WRONLY), (request["err"], os.O_WRONLY))
    ):
        os.dup2(os.open(name, mode | os.O_CREAT, 0o600), number)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["cwd"])
    sys.path[0] = request["cwd"]
    sys.argv[:] = request["argv"]


if __name__ == "__main__":
    for name in IMPORTED:
        importlib.import_module(name)
    gc.freeze()  # nothing to collect for each command
    command = _next_command()
    _become(command)
    runpy.run_module(command["module"], run_name="__main__", alter_sys=True)
