"""Evaluate a stored run again: python -m resnest_jax.evaluate --workdir=DIR"""

import json

from absl import flags

from resnest_jax import cli, runs
from resnest_jax.training import distributed

FLAGS = flags.FlagValues()
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Directory of the run.", required=True, flag_values=FLAGS
)
CHECKPOINT = flags.DEFINE_string(
    "checkpoint", "last", "Checkpoint: last, best or a step.", flag_values=FLAGS
)


def main(_: list[str]) -> None:
    """Evaluate the checkpoint."""
    distributed.start()
    results = runs.evaluate(cli.local_path(WORKDIR), CHECKPOINT.value)
    if distributed.is_main():
        print(json.dumps(results, indent=2))


if __name__ == "__main__":
    cli.run(main, FLAGS)
