"""Communication and memory of a training step.

    python -m experiments.scaling --config=configs/imagenet.py:resnest50 --images=16

Compiles the training step for 1, 2, 4 and 8 virtual CPU devices, with the same number of images
per device (weak scaling), and reads from the program: collectives by kind, their bytes, the memory
of one device. No step is run. Compare --config.parallel.batch_norm, .shard_optimizer and
.accumulate, or --config.model.remat. The effect of remat is in the last column: what the forward
pass keeps for the backward pass. XLA:CPU removes the recomputation; GPUs and TPUs keep it. Writes
the table to --out if it is given.

    python -m experiments.scaling --config=configs/imagenet.py:resnest50 --images=128 \\
        --config.model.dtype=bfloat16 --topologies=v5e:2x2,v5e:16x16 --stand_in

does so for slices of TPUs that are not there: compiled estimates, not runs, see
``resnest_jax.topology``. A compilation takes minutes. --stand_in compiles a recipe without its
data set, with tiny images of the same classes.
"""

import concurrent.futures
import math
import re
import tempfile
from collections import Counter
from pathlib import Path

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags

from experiments.scaling import stand_in
from resnest_jax import arguments, cli, recipe, topology
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
TOPOLOGIES = flags.DEFINE_list(
    "topologies",
    [],
    "Slices of TPUs that are not there, such as v5e:4x4, in place of --devices.",
    flag_values=FLAGS,
)
STAND_IN = flags.DEFINE_bool(
    "stand_in",
    False,
    "Take tiny images with the same classes in place of ImageNet, ADE20K or COCO.",
    flag_values=FLAGS,
)
IMAGES = flags.DEFINE_integer("images", 16, "Images per device.", lower_bound=1, flag_values=FLAGS)
OUT = flags.DEFINE_string("out", None, "Markdown file to write the table to.", flag_values=FLAGS)
flags.mark_flag_as_required("config", flag_values=FLAGS)

CPU_HEAD = "| devices | batch | collectives | kinds | MB/step | GiB/device | GiB for backward |"
TPU_HEAD = (
    "| slice | images a chip | GiB a chip | exchanged a step | TFLOP | GB accessed | compute, ms "
    "| memory, ms | exchange, ms | megacycles | images/s a chip | compiling, s |"
)
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
    """Print a row for each number of devices, or for each slice."""
    out = None if OUT.value is None else arguments.output_path(OUT)
    config = complete(CONFIG.value)
    if TOPOLOGIES.value:
        if DEVICES.present:
            raise InputError("--devices and --topologies are both given; use one")
        slices = [topology.describe_slice(name) for name in TOPOLOGIES.value]
        head, counts, row = TPU_HEAD, [described.mesh.size for described in slices], tpu_row
    else:
        slices = counts = [_count(text) for text in DEVICES.value]
        head, row = CPU_HEAD, _cpu_row
    if not counts:
        raise InputError("--devices must name at least one number of devices, such as 1,2,4")
    with tempfile.TemporaryDirectory() as folder:
        if STAND_IN.value:
            stand_in.use(config, Path(folder), max(counts) * IMAGES.value)
        rows = [head, re.sub("[^|]+", "---", head)]
        print(*rows, sep="\n", flush=True)
        for each in slices:
            rows.append(row(config, each, IMAGES.value))
            print(rows[-1], flush=True)
    if out:
        with writing("--out", out):
            write_atomic(out, ("\n".join(rows) + "\n").encode())


def _cpu_row(config: ConfigDict, devices: int, images: int) -> str:
    with concurrent.futures.ProcessPoolExecutor(1) as pool:
        return pool.submit(measure, config, devices, images).result()


def tpu_row(config: ConfigDict, described: topology.Slice, images: int) -> str:
    """Return a row of the table for a slice of TPUs."""
    config.batch_size = images * described.mesh.size
    run = recipe.build(config, mesh=described.mesh)
    found = topology.estimate(run, described, config.batch_size)
    start = f"| {described.name} | {images} | {found['needed_gib']} of {found['available_gib']} "
    if not found["fits"]:
        return f"{start}| does not fit: {found['reason']} |"
    sent = ", ".join(
        f"{value['count']} {kind}, {value['mib']} MiB" for kind, value in found["exchanged"].items()
    )
    names = (
        *("tflop", "accessed_gb", "compute_ms", "memory_ms", "exchange_ms"),
        *("megacycles", "images_per_second_per_chip", "compile_seconds"),
    )
    return f"{start}| {sent} | {' | '.join(str(found[name]) for name in names)} |"


def _count(text: str) -> int:
    """Return a number of devices from its text."""
    if text.isdecimal() and 1 <= int(text) <= MAX_DEVICES:
        return int(text)
    raise InputError(f"--devices must be integers from 1 to {MAX_DEVICES}; got {text!r}")


if __name__ == "__main__":
    cli.run(main, FLAGS)
