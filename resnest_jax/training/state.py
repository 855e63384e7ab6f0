"""The state of a run and the pure step that advances it."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from resnest_jax.errors import InputError

PyTree = Any
Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]

# loss_fn(params, batch_stats, batch, rng, progress) -> loss, new batch_stats
LossFn = Callable[[PyTree, PyTree, Batch, jax.Array, jax.Array], tuple[jax.Array, PyTree]]


class TrainState(flax.struct.PyTreeNode):
    """Everything that a step changes; ``step`` counts the steps taken, int32.

    ``ema`` is the moving average of ``{"params", "batch_stats"}``, or None for a run without.
    """

    step: jax.Array
    params: PyTree
    batch_stats: PyTree
    opt_state: PyTree
    ema: PyTree | None = None

    @property
    def variables(self) -> dict:
        """What is evaluated: the moving average if there is one."""
        return self.ema or {"params": self.params, "batch_stats": self.batch_stats}


def create_state(
    variables: PyTree, optimizer: optax.GradientTransformation, *, ema: bool = False
) -> TrainState:
    """The state before the first step."""
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    average = {"params": params, "batch_stats": batch_stats} if ema else None
    return TrainState(
        jnp.zeros((), jnp.int32), params, batch_stats, optimizer.init(params), average
    )


def make_train_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    seed: int,
    total_steps: int,
    *,
    ema_decay: float = 0.0,
    accumulate: int = 1,
    shards: int = 1,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """``train_step(state, batch) -> state, {"loss", "grad_norm"}``: pure, to be jitted.

    Its randomness follows from the seed and the step, so that a restored state needs no key. The
    loss is told the progress of training, from 0 to 1 at ``total_steps``.

    Args:
      ema_decay: of the state's moving average, if it has one.
      accumulate: parts of the batch that go through the network one after the other, their
        gradients averaged: less memory, and batch statistics by part.
      shards: devices that the batch is split over, so that every part takes from all of them.

    Raises:
      InputError: while tracing, if the batch does not split into ``accumulate * shards``.
    """

    def gradients(state, batch, rng, progress):
        """Loss, new batch statistics and gradient of the batch, part by part."""
        gradient = jax.value_and_grad(loss_fn, has_aux=True)
        if accumulate == 1:
            return gradient(state.params, state.batch_stats, batch, rng, progress)

        def add(carry, part):
            batch_stats, total, grads = carry
            index, images = part
            (loss, batch_stats), new = gradient(
                state.params, batch_stats, images, jax.random.fold_in(rng, index), progress
            )
            return (batch_stats, total + loss, jax.tree.map(jnp.add, grads, new)), None

        zeros = jax.tree.map(jnp.zeros_like, state.params)
        parts = jnp.arange(accumulate), split_batch(batch, accumulate, shards)
        # XLA:CPU runs convolutions inside of a loop far slower than outside of one.
        unroll = jax.default_backend() == "cpu"
        start = (state.batch_stats, jnp.zeros(()), zeros)
        (batch_stats, total, grads), _ = jax.lax.scan(add, start, parts, unroll=unroll)
        grads = jax.tree.map(lambda g: g / accumulate, grads)
        return (total / accumulate, batch_stats), grads

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        rng = jax.random.fold_in(jax.random.key(seed), state.step)
        progress = state.step / total_steps
        (loss, batch_stats), grads = gradients(state, batch, rng, progress)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {"loss": loss, "grad_norm": optax.tree.norm(grads)}
        ema = state.ema
        if ema is not None:
            # The first steps are not to be remembered for 1 / (1 - decay) of them.
            decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
            new = {"params": params, "batch_stats": batch_stats}
            ema = optax.incremental_update(new, ema, 1 - decay)
        return TrainState(state.step + 1, params, batch_stats, opt_state, ema), metrics

    return train_step


def split_batch(batch: Batch, parts: int, shards: int) -> Batch:
    """Arrays (B, ...) -> (parts, B / parts, ...), each part with as much of every shard.

    Raises:
      InputError: if ``parts * shards`` does not divide B.
    """

    def split(x):
        if x.shape[0] % (parts * shards):
            raise InputError(
                f"batch_size {x.shape[0]} must be a multiple of {shards} devices times "
                f"{parts} accumulated parts"
            )
        x = x.reshape(shards, parts, -1, *x.shape[1:]).swapaxes(0, 1)
        return x.reshape(parts, -1, *x.shape[3:])

    return jax.tree.map(split, batch)
