"""The state of a run and the pure step that advances it."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

PyTree = Any
Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]

# loss_fn(params, batch_stats, batch, rng, progress) -> loss, new batch_stats
LossFn = Callable[[PyTree, PyTree, Batch, jax.Array, jax.Array], tuple[jax.Array, PyTree]]


class TrainState(flax.struct.PyTreeNode):
    """Everything that a step changes; ``step`` counts the steps taken, int32."""

    step: jax.Array
    params: PyTree
    batch_stats: PyTree
    opt_state: PyTree


def create_state(variables: PyTree, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    return TrainState(jnp.zeros((), jnp.int32), params, batch_stats, optimizer.init(params))


def make_train_step(
    loss_fn: LossFn, optimizer: optax.GradientTransformation, seed: int, total_steps: int
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """``train_step(state, batch) -> state, {"loss", "grad_norm"}``: pure, to be jitted.

    Its randomness follows from the seed and the step, so that a restored state needs no key. The
    loss is told the progress of training, from 0 to 1 at ``total_steps``.
    """

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        rng = jax.random.fold_in(jax.random.key(seed), state.step)
        gradient = jax.value_and_grad(loss_fn, has_aux=True)
        progress = state.step / total_steps
        (loss, batch_stats), grads = gradient(state.params, state.batch_stats, batch, rng, progress)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {"loss": loss, "grad_norm": optax.tree.norm(grads)}
        return TrainState(state.step + 1, params, batch_stats, opt_state), metrics

    return train_step
