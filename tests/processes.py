"""Run commands in several processes of this machine, which share four virtual devices."""

import json
import subprocess
import sys

import helpers
from commands import environment


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


def write_config(path, config):
    """Write a config as a file that the commands take."""
    path.write_text(
        "from resnest_jax.config import complete\n"
        f"def get_config(): return complete({config.to_dict()})"
    )
