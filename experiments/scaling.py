"""Communication and memory of a training step.

    python -m experiments.scaling --config=configs/imagenet.py:resnest50 --images=16

Compiles the training step for 1, 2, 4 and 8 virtual CPU devices, with the same number of images
per device (weak scaling), and reads from the program: collectives by kind, their bytes, the memory
of one device. No step is run. Compare --config.parallel.batch_norm, .shard_optimizer and
.accumulate, or --config.model.remat. The effect of remat is in the last column: what the forward
pass keeps for the backward pass. XLA:CPU removes the recomputation; GPUs and TPUs keep it. Writes
the table to --out if it is given.
"""

from typing import Any

from absl import flags
from ml_collections import config_flags

from experiments import devices
from resnest_jax import arguments, cli
from resnest_jax.config import complete
from resnest_jax.errors import InputError
from resnest_jax.files import write_atomic, writing

FLAGS = flags.FlagValues()
CONFIG = config_flags.DEFINE_config_file("config", None, "The recipe.", flag_values=FLAGS)
DEVICES = flags.DEFINE_list(
    "devices", ["1", "2", "4", "8"], "Numbers of devices.", flag_values=FLAGS
)
IMAGES = flags.DEFINE_integer("images", 16, "Images per device.", lower_bound=1, flag_values=FLAGS)
OUT = flags.DEFINE_string("out", None, "Markdown file to write the table to.", flag_values=FLAGS)
flags.mark_flag_as_required("config", flag_values=FLAGS)

MAX_DEVICES = 1024  # virtual ones, with a thread each


def main(_: list[str]) -> None:
    """Print a row for each number of devices."""
    counts = [_count(text) for text in DEVICES.value]
    if not counts:
        raise InputError("--devices must name at least one number of devices, such as 1,2,4")
    out = None if OUT.value is None else arguments.output_path(OUT)
    rows = [
        "| devices | batch | collectives | kinds | MB/step | GiB/device | GiB for backward |",
        "|---|---|---|---|---|---|---|",
    ]
    print(*rows, sep="\n", flush=True)
    for found in devices.measure(complete(CONFIG.value), counts, IMAGES.value):
        rows.append(_row(found))
        print(rows[-1], flush=True)
    if out:
        with writing("--out", out):
            write_atomic(out, ("\n".join(rows) + "\n").encode())


def _row(found: dict[str, Any]) -> str:
    kinds = found["collectives"]
    return (
        f"| {found['devices']} | {found['batch']} | {sum(kinds.values())} "
        f"| {', '.join(f'{count} {kind}' for kind, count in kinds.items())} "
        f"| {found['exchanged_mb']:.2f} | {found['gib']:.2f} | {found['kept_gib']:.2f} |"
    )


def _count(text: str) -> int:
    """Return a number of devices from its text."""
    if text.isdecimal() and 1 <= int(text) <= MAX_DEVICES:
        return int(text)
    raise InputError(f"--devices must be integers from 1 to {MAX_DEVICES}; got {text!r}")


if __name__ == "__main__":
    cli.run(main, FLAGS)
