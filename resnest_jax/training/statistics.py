"""Statistics of batch norms that belong to the last weights: averages over training batches."""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from resnest_jax.training.distributed import is_main
from resnest_jax.training.mesh import replicated, shard
from resnest_jax.training.run import Run
from resnest_jax.training.state import TrainState
from resnest_jax.training.step import scan_parts
from resnest_jax.training.task import KEPT, Batch, HostBatch, PyTree, Variables


def recompute_statistics(run: Run, state: TrainState, stream: Iterator[HostBatch]) -> TrainState:
    """Return the state after the last step with new statistics in the variables to evaluate.

    They are the averages of the means, and of the variances, of the next
    ``options.recompute_batch_norm`` training batches, or of the parts of these if
    ``options.accumulate`` says so: "precise batch norm", as detectron2 does it. No parameter
    changes, and no statistics of a frozen norm.

    Args:
      stream: the training batches from the last step on.
    """
    count = run.options.recompute_batch_norm
    if is_main():
        print(f"recomputing the statistics of batch norms over {count} batches", flush=True)
    # A moving average may be sharded over the devices.
    variables = jax.device_put(state.variables, replicated(run.mesh))
    old = variables["batch_stats"]
    add = jax.jit(_make_add(run), out_shardings=replicated(run.mesh))
    total = jax.tree.map(jnp.zeros_like, old)
    for step in range(run.options.total_steps, run.options.total_steps + count):
        batch = shard(next(stream), run.mesh)
        jax.block_until_ready(total)  # else all batches may wait in the device's memory
        total = add(variables, total, batch, np.int32(step))
    new = jax.tree.map(lambda old, total: old + total / count, old, total)
    if state.ema is None:
        return state.replace(batch_stats=new)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state.ema["batch_stats"])
    return state.replace(ema={**state.ema, "batch_stats": jax.device_put(new, shardings)})


def _make_add(run: Run) -> Callable[[Variables, PyTree, Batch, jax.Array], PyTree]:
    """Make the function that adds a batch to the sum of its statistics' distances to the old.

    The distance of a frozen norm is 0 exactly, which makes it stay.
    """
    options = run.options

    def add(variables: Variables, total: PyTree, batch: Batch, step: jax.Array) -> PyTree:
        def distance(running: jax.Array, old: jax.Array) -> jax.Array:
            return (running - old) / ((1 - KEPT) * options.accumulate)

        def add_part(total: PyTree, part: Batch, rng: jax.Array) -> tuple[PyTree, None]:
            _, aux = run.task.loss(variables, part, rng, jnp.ones(()))
            new = jax.tree.map(distance, aux.batch_stats, variables["batch_stats"])
            return jax.tree.map(jnp.add, total, new), None

        rng = jax.random.fold_in(jax.random.key(options.seed), step)
        return scan_parts(run, add_part, total, batch, rng)[0]

    return add
