"""Communication and memory of a training step.

    python -m experiments.scaling --config=configs/imagenet.py:resnest50 --images=16

Compiles the training step for 1, 2, 4 and 8 virtual CPU devices, with the same number of images
per device (weak scaling), and reads from the program: collectives by kind, their bytes, the memory
of one device. No step is run. Compare --config.parallel.batch_norm, .shard_optimizer and
.accumulate, or --config.model.remat. The effect of remat is in the last column: what the forward
pass keeps for the backward pass. XLA:CPU removes the recomputation; GPUs and TPUs keep it. Writes
the table to --out if it is given.
"""

import concurrent.futures
import math
from collections import Counter

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags

from resnest_jax import arguments, cli, recipe
from resnest_jax.config import complete
from resnest_jax.dry_run import abstract_batch, compile_step
from resnest_jax.errors import InputError
from resnest_jax.files import write_atomic, writing
from resnest_jax.training.collectives import collectives
from resnest_jax.training.run import Run
from resnest_jax.training.state import abstract_state

FLAGS = flags.FlagValues()
CONFIG = config_flags.DEFINE_config_file("config", None, "The recipe.", flag_values=FLAGS)
DEVICES = flags.DEFINE_list(
    "devices", ["1", "2", "4", "8"], "Numbers of devices.", flag_values=FLAGS
)
IMAGES = flags.DEFINE_integer("images", 16, "Images per device.", lower_bound=1, flag_values=FLAGS)
OUT = flags.DEFINE_string("out", None, "Markdown file to write the table to.", flag_values=FLAGS)
flags.mark_flag_as_required("config", flag_values=FLAGS)

MAX_DEVICES = 1024  # virtual ones, with a thread each


def measure(config: ConfigDict, devices: int, images: int) -> str:
    """Return a row of the table; needs a process in which JAX has not started yet."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)
    config.batch_size = devices * images
    run = recipe.build(config)
    compiled, memory = compile_step(run)
    found = collectives(compiled.as_text())
    kinds = Counter(operation.kind for operation in found)
    return (
        f"| {devices} | {config.batch_size} | {sum(kinds.values())} "
        f"| {', '.join(f'{count} {kind}' for kind, count in kinds.items())} "
        f"| {sum(operation.bytes for operation in found) / 1e6:.2f} | {memory['needed_gib']:.2f} "
        f"| {kept_for_backward(run) / devices / 2**30:.2f} |"
    )


def kept_for_backward(run: Run) -> float:
    """Return the bytes of activations that the forward pass keeps, per accumulated part."""

    def backward(params, batch_stats, batch):
        def loss_fn(params):
            variables = {"params": params, "batch_stats": batch_stats}
            return run.task.loss(variables, batch, jax.random.key(0), 0.0)

        return jax.vjp(loss_fn, params, has_aux=True)[1]  # a tree of the kept arrays

    state, batch = abstract_state(run), abstract_batch(run)
    kept = jax.tree.leaves(jax.eval_shape(backward, state.params, state.batch_stats, batch))
    sizes = [math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in kept]
    parameters = sum(4 * leaf.size for leaf in jax.tree.leaves(state.params))
    return (sum(sizes) - parameters) / run.options.accumulate


def main(_: list[str]) -> None:
    """Print a row for each number of devices."""
    counts = [_count(text) for text in DEVICES.value]
    if not counts:
        raise InputError("--devices must name at least one number of devices, such as 1,2,4")
    out = None if OUT.value is None else arguments.output_path(OUT)
    config = complete(CONFIG.value)
    rows = [
        "| devices | batch | collectives | kinds | MB/step | GiB/device | GiB for backward |",
        "|---|---|---|---|---|---|---|",
    ]
    print(*rows, sep="\n", flush=True)
    for count in counts:
        with concurrent.futures.ProcessPoolExecutor(1) as pool:
            task = pool.submit(measure, config, count, IMAGES.value)
            rows.append(task.result())
        print(rows[-1], flush=True)
    if out:
        with writing("--out", out):
            write_atomic(out, ("\n".join(rows) + "\n").encode())


def _count(text: str) -> int:
    """Return a number of devices from its text."""
    if text.isdecimal() and 1 <= int(text) <= MAX_DEVICES:
        return int(text)
    raise InputError(f"--devices must be integers from 1 to {MAX_DEVICES}; got {text!r}")


if __name__ == "__main__":
    cli.run(main, FLAGS)
