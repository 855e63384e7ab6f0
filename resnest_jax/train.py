"""Train a model: python -m resnest_jax.train --config=configs/digits.py --workdir=DIR"""

import json

from absl import flags
from ml_collections import config_flags

from resnest_jax import arguments, cli, dry_run, runs, topology
from resnest_jax.errors import InputError
from resnest_jax.training import distributed

FLAGS = flags.FlagValues()
CONFIG = config_flags.DEFINE_config_file("config", None, "The recipe.", flag_values=FLAGS)
WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Directory of the run; an existing run is resumed.",
    required=True,
    flag_values=FLAGS,
)
DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "Only check data, memory, disk and speed of the run.", flag_values=FLAGS
)
TOPOLOGY = flags.DEFINE_string(
    "topology",
    None,
    "With --dry_run: compile the step for a slice of TPUs that is not there, such as v5e:4x4, "
    "v5p:2x2x4 or v6e:16x16, and report memory, exchange and a roofline: estimates, not a run.",
    flag_values=FLAGS,
)
FROM_STEP = flags.DEFINE_integer(
    "from_step",
    None,
    "Go back to the checkpoint of this step; optimizer, loss and others may then have new values.",
    lower_bound=0,
    flag_values=FLAGS,
)
flags.mark_flag_as_required("config", flag_values=FLAGS)


def main(_: list[str]) -> None:
    """Train the recipe."""
    workdir = arguments.local_path(WORKDIR)
    if TOPOLOGY.value is not None:
        if not DRY_RUN.value:
            raise InputError(f"--topology={TOPOLOGY.value} needs --dry_run: no chip is used")
        topology.dry_run(CONFIG.value, workdir, TOPOLOGY.value)
        return
    distributed.start()
    if DRY_RUN.value:
        dry_run.dry_run(CONFIG.value, workdir)
        return
    summary = runs.train(CONFIG.value, workdir, FROM_STEP.value)
    if distributed.is_main():
        print(json.dumps(summary, indent=2))


if __name__ == "__main__":
    cli.run(main, FLAGS)
