"""Train a model: python -m resnest_jax.train --config=configs/digits.py --workdir=DIR"""

import json
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from resnest_jax import cli, dry_run, runs
from resnest_jax.training import distributed

CONFIG = config_flags.DEFINE_config_file("config", None, "The recipe.", lock_config=True)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where the run is kept; a run that is already there goes on."
)
DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "Only find out whether the run can work, what it takes and how fast it is."
)
flags.mark_flags_as_required(["config", "workdir"])


def main(_: list[str]) -> None:
    """Train what the flags name."""
    distributed.start()
    workdir = Path(WORKDIR.value).expanduser()
    if DRY_RUN.value:
        dry_run.dry_run(CONFIG.value, workdir)
        return
    summary = runs.train(CONFIG.value, workdir)
    if distributed.is_main():
        print(json.dumps(summary, indent=2))


if __name__ == "__main__":
    cli.run(main)
