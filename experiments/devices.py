"""What the devices of a training step exchange and hold, read from the compiled program."""

import concurrent.futures
import math
import re
from collections.abc import Iterator
from typing import Any

import jax
from ml_collections import ConfigDict

from resnest_jax import recipe
from resnest_jax.dry_run import abstract_batch, compile_step
from resnest_jax.training.run import Run
from resnest_jax.training.state import abstract_state

KINDS = "all-reduce|all-gather|reduce-scatter|collective-permute|all-to-all"
BYTES = {"pred": 1, "u8": 1, "s8": 1, "bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8}


def collectives(program: str) -> list[tuple[str, int]]:
    """Return (kind, bytes) of each collective in the text of a compiled program."""
    found = re.findall(rf"= (\(.*?\)|\S+) ({KINDS})(?:-start)?\(", program)
    return [(kind, _bytes(shapes)) for shapes, kind in found]


def _bytes(shapes: str) -> int:
    arrays = re.findall(r"(\w+)\[([\d,]*)\]", shapes)
    return sum(
        BYTES[dtype] * math.prod(int(size) for size in sizes.split(",") if size)
        for dtype, sizes in arrays
    )


def measure(config: ConfigDict, counts: list[int], images: int) -> Iterator[dict[str, Any]]:
    """Compile the step of a recipe for each number of virtual CPU devices; yield what it needs.

    Each has its own process, whose number of devices is fixed when JAX starts; the process that
    calls must not have started JAX yet.

    Args:
      images: per device.

    Yields:
      ``devices``, ``batch``, ``collectives`` (kind -> how many), ``exchanged_mb`` (1e6 bytes), and
      of one device ``gib``, ``temporary_mib`` and ``kept_gib``, for the backward pass.
    """
    for count in counts:
        with concurrent.futures.ProcessPoolExecutor(1) as pool:
            yield pool.submit(_measure, config, count, images).result()


def _measure(config: ConfigDict, devices: int, images: int) -> dict[str, Any]:
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)
    config.batch_size = devices * images
    run = recipe.build(config)
    compiled, memory = compile_step(run)
    found = collectives(compiled.as_text())
    return {
        "devices": devices,
        "batch": config.batch_size,
        "collectives": {kind: sum(k == kind for k, _ in found) for kind, _ in found},
        "exchanged_mb": sum(size for _, size in found) / 1e6,
        "gib": memory["needed_gib"],
        "temporary_mib": compiled.memory_analysis().temp_size_in_bytes / 2**20,
        "kept_gib": kept_for_backward(run) / devices / 2**30,
    }


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
