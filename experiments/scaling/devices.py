"""What the devices of a training step exchange and hold, read from the compiled program."""

import concurrent.futures
import math
import multiprocessing
from collections import Counter
from typing import Any

import jax
from ml_collections import ConfigDict

from resnest_jax import recipe
from resnest_jax.dry_run import abstract_batch, compile_step
from resnest_jax.training.collectives import collectives
from resnest_jax.training.run import Run
from resnest_jax.training.state import abstract_state


def measure(config: ConfigDict, devices: int, images: int) -> dict[str, Any]:
    """Compile the step of a recipe for a number of virtual CPU devices; return what it needs.

    It does so in another process, since their number is fixed when JAX starts.

    Args:
      images: per device.

    Returns:
      ``devices``, ``batch``, ``collectives`` (kind -> how many), ``exchanged_mb`` (1e6 bytes), and
      of one device ``gib``, ``temporary_mib`` and ``kept_gib``, for the backward pass.
    """
    spawn = multiprocessing.get_context("spawn")  # JAX may have started here
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(_measure, config, devices, images).result()


def _measure(config: ConfigDict, devices: int, images: int) -> dict[str, Any]:
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)
    config.batch_size = devices * images
    run = recipe.build(config)
    compiled, memory = compile_step(run)
    found = collectives(compiled.as_text() or "")
    return {
        "devices": devices,
        "batch": config.batch_size,
        "collectives": Counter(operation.kind for operation in found),
        "exchanged_mb": sum(operation.bytes for operation in found) / 1e6,
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
