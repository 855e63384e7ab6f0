"""The training step: a pure function of state and batch."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.experimental.xla_metadata import set_xla_metadata

from resnest_jax.errors import InputError
from resnest_jax.training.mesh import platform_of, replicated
from resnest_jax.training.optimizer import global_norm, trainable
from resnest_jax.training.run import Run
from resnest_jax.training.state import TrainState, abstract_state
from resnest_jax.training.task import Aux, Batch, Metrics, PyTree

TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def jit_train_step(run: Run) -> jax.stages.Wrapped:
    """Return the jitted training step, which donates the state."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(run))
    out = (shardings, replicated(run.mesh))
    return jax.jit(make_train_step(run), out_shardings=out, donate_argnums=0)


def make_train_step(run: Run) -> TrainStep:
    """Make the pure function ``train_step(state, batch) -> state, {"loss", "grad_norm", ...}``.

    Random numbers depend only on the seed and the step, so a restored state needs no key. The
    task's loss adds its own metrics; ``grad_norm`` is the norm before clipping. With
    ``options.accumulate`` the parts of a batch go through the network one after another; gradients,
    loss and metrics are means over the parts. This needs less memory and has batch statistics per
    part.

    Raises:
      InputError: while tracing, if devices x ``accumulate`` does not divide the batch.
    """
    options, optimizer = run.options, run.optimizer

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        rng = jax.random.fold_in(jax.random.key(options.seed), state.step)
        progress = state.step / options.total_steps
        (loss, aux), grads = _gradients(run, state, batch, rng, progress)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {"loss": loss, "grad_norm": global_norm(grads), **aux.metrics}
        ema = state.ema
        if ema is not None:
            # Warm up the decay: else the first steps would dominate for 1 / (1 - decay) steps.
            decay = jnp.minimum(options.ema_decay, (1 + state.step) / (10 + state.step))
            new = {"params": params, "batch_stats": aux.batch_stats}
            ema = optax.incremental_update(new, ema, 1 - decay)
        return TrainState(state.step + 1, params, aux.batch_stats, opt_state, ema), metrics

    return train_step


def _gradients(
    run: Run, state: TrainState, batch: Batch, rng: jax.Array, progress: jax.Array
) -> tuple[tuple[jax.Array, Aux], PyTree]:
    """Compute loss, ``Aux`` and gradients of a batch, part by part; frozen gradients are 0."""
    accumulate = run.options.accumulate
    trained, merge, fill = _split_frozen(state.params, run.options.freeze)

    def loss(
        trained: PyTree, batch_stats: PyTree, batch: Batch, rng: jax.Array
    ) -> tuple[jax.Array, Aux]:
        variables = {"params": merge(trained), "batch_stats": batch_stats}
        return run.task.loss(variables, batch, rng, progress)

    gradient = jax.value_and_grad(loss, has_aux=True)
    if platform_of(run.mesh) == "cpu":
        gradient = _not_inlined(gradient)
    if accumulate == 1:
        out, grads = gradient(trained, state.batch_stats, batch, rng)
        return out, fill(grads)

    def add(carry: tuple, part: Batch, rng: jax.Array) -> tuple[tuple, Metrics]:
        batch_stats, total, grads = carry
        (loss, aux), new = gradient(trained, batch_stats, part, rng)
        return (aux.batch_stats, total + loss, jax.tree.map(jnp.add, grads, new)), aux.metrics

    start = (state.batch_stats, jnp.zeros(()), jax.tree.map(jnp.zeros_like, trained))
    (batch_stats, total, grads), metrics = scan_parts(run, add, start, batch, rng)
    grads = jax.tree.map(lambda g: g / accumulate, grads)
    aux = Aux(batch_stats, jax.tree.map(lambda x: x.mean(0), metrics))
    return (total / accumulate, aux), fill(grads)


def _not_inlined(function: Callable) -> Callable:
    """Make a function a call that XLA does not inline.

    XLA:CPU compares every two operations of a graph, so two graphs compile and load faster than
    one. In one it also copies all parameters, as the backward pass may still read what the update
    overwrites.
    """
    function = jax.jit(function)
    return lambda *args: set_xla_metadata(function(*args), inlineable="false")


def scan_parts(
    run: Run,
    add: Callable[[PyTree, Batch, jax.Array], tuple[PyTree, PyTree]],
    start: PyTree,
    batch: Batch,
    rng: jax.Array,
) -> tuple[PyTree, PyTree]:
    """Scan ``add(carry, part, rng) -> carry, out`` over the accumulated parts of a batch."""
    count = run.options.accumulate

    def add_part(carry: PyTree, indexed: tuple[jax.Array, Batch]) -> tuple[PyTree, PyTree]:
        index, part = indexed
        return add(carry, part, jax.random.fold_in(rng, index))

    parts = jnp.arange(count), split_batch(batch, count, run.mesh.size)
    return jax.lax.scan(add_part, start, parts)


def _split_frozen(params: PyTree, freeze: str) -> tuple[PyTree, Callable, Callable]:
    """Return the trained parameters, and functions that complete them and their gradients.

    Frozen parameters are constants of the loss: no gradient is computed for them, or for anything
    below them.
    """
    mask = trainable(params, freeze)

    def complete(trained: PyTree, others: PyTree) -> PyTree:
        return jax.tree.map(
            lambda keep, new, other: new if keep else other,
            mask,
            trained,
            others,
            is_leaf=lambda x: x is None,
        )

    trained = jax.tree.map(lambda keep, p: p if keep else None, mask, params)
    zeros = jax.tree.map(jnp.zeros_like, params)
    return trained, lambda new: complete(new, params), lambda grads: complete(grads, zeros)


def split_batch(batch: Batch, parts: int, shards: int) -> Batch:
    """Split arrays (B, ...) -> (parts, B / parts, ...); parts take equally from every shard.

    Raises:
      InputError: if ``parts * shards`` does not divide B.
    """

    def split(x: jax.Array) -> jax.Array:
        if x.shape[0] % (parts * shards):
            raise InputError(
                f"batch_size {x.shape[0]} must be a multiple of {shards} devices times "
                f"{parts} accumulated parts"
            )
        x = x.reshape(shards, parts, -1, *x.shape[1:]).swapaxes(0, 1)
        return x.reshape(parts, -1, *x.shape[3:])

    return jax.tree.map(split, batch)
