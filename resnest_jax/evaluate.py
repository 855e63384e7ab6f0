"""Evaluate a stored run again: python -m resnest_jax.evaluate --workdir=DIR"""

import json
from pathlib import Path

from absl import flags

from resnest_jax import cli, runs
from resnest_jax.training import distributed

WORKDIR = flags.DEFINE_string("workdir", None, "The directory of the run.")
CHECKPOINT = flags.DEFINE_string("checkpoint", "last", "Which one: last, best or a step.")
flags.mark_flags_as_required(["workdir"])


def main(_: list[str]) -> None:
    """Evaluate what the flags name."""
    distributed.start()
    results = runs.evaluate(Path(WORKDIR.value).expanduser(), CHECKPOINT.value)
    if distributed.is_main():
        print(json.dumps(results, indent=2))


if __name__ == "__main__":
    cli.run(main)
