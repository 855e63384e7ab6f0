"""Run commands in processes of this machine, kill them, and compare what they wrote."""

import json
import subprocess
import sys
import time

import helpers
import jax
import numpy as np
import orbax.checkpoint as ocp
from commands import environment


def run(count, command, *args):
    """Run a command in this many processes, which share four virtual devices.

    Returns the output of the first.
    """
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


def write_config(path, config):
    """Write a config as a file that the commands take."""
    path.write_text(
        "from resnest_jax.config import complete\n"
        f"def get_config(): return complete({config.to_dict()})"
    )


def kill_run(args, devices, line="step", seconds=0.0):
    """Start a training run and kill -9 it some seconds after a line that begins so."""
    process = subprocess.Popen(
        [sys.executable, "-m", "resnest_jax.train", *args],
        cwd=helpers.ROOT,
        env=environment(devices),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert any(shown.startswith(line) for shown in process.stdout)
    time.sleep(seconds)
    process.kill()
    process.wait()
    process.stdout.close()


def assert_same_run(actual, expected):
    """Check that two runs are equal bit for bit, but for their time."""
    assert (actual / "metrics.jsonl").read_bytes() == (expected / "metrics.jsonl").read_bytes()
    summaries = [json.loads((run / "summary.json").read_text()) for run in (actual, expected)]
    assert summaries[0] | {"seconds": 0} == summaries[1] | {"seconds": 0}
    arrays, wanted = stored_arrays(actual), stored_arrays(expected)
    assert arrays.keys() == wanted.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, wanted[name], err_msg=name)


def stored_arrays(workdir):
    """Return each array of the last checkpoint by name."""
    step = max(int(path.name) for path in (workdir / "checkpoints").iterdir())
    folder = workdir / "checkpoints" / str(step) / "state"
    with ocp.PyTreeCheckpointer() as checkpointer:
        tree = checkpointer.metadata(folder).item_metadata.tree
        args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        tree = checkpointer.restore(folder, args=ocp.args.PyTreeRestore(restore_args=args))
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
