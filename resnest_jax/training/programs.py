"""What a run compiles, laid out over the mesh: initial state, training step, evaluation."""

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import jax
import numpy as np
import optax

from resnest_jax.training.mesh import make_mesh, replicated, shard, state_sharding
from resnest_jax.training.state import LossFn, Metrics, TrainState, create_state, make_train_step

HostBatch = dict[str, np.ndarray]


class Task(Protocol):
    """What training needs to know of a task."""

    best_metric: str  # the evaluation metric, higher is better, by which checkpoints are kept
    loss_fn: LossFn

    def init(self, rng: jax.Array) -> dict:
        """Variables of the model."""

    def eval_fn(self, params, batch_stats, batch) -> Metrics:
        """Sums over the images of a batch whose mask is true, ``count`` among them."""


class Batches(Protocol):
    """What training needs to know of the data."""

    def train(self, start_step: int) -> Iterator[HostBatch]:
        """Endless batches from a step on."""

    def train_keys(self, step: int) -> list[str]:
        """What finds the records of this process's part of the batch of a step, from 0."""

    def eval(self) -> Iterator[HostBatch]:
        """One pass over the evaluation images."""


class Plan(NamedTuple):
    """How a run goes: its length and rhythm in steps, and how a step is carried out."""

    seed: int
    total_steps: int
    steps_per_epoch: float
    batch_size: int
    log_every: int
    eval_every: int
    save_every: int = 0  # besides every evaluation; 0 is never
    ema_decay: float = 0.0
    accumulate: int = 1
    shard_optimizer: bool = False
    groups: int = 1  # parts of the batch that are normalised and mixed apart


def abstract_state(task: Task, optimizer: optax.GradientTransformation, plan: Plan) -> TrainState:
    """Shapes, dtypes and shardings of the state."""
    state = jax.eval_shape(_create(task, optimizer, plan), jax.random.key(0))
    shardings = state_sharding(state, make_mesh(), shard_optimizer=plan.shard_optimizer)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        state,
        shardings,
    )


def initial_state(
    task: Task,
    optimizer: optax.GradientTransformation,
    plan: Plan,
    pretrained: Callable[[], dict] | None = None,
) -> TrainState:
    """The state before the first step, made where it is to lie, from new or loaded variables."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(task, optimizer, plan))
    ema = plan.ema_decay > 0
    if pretrained:
        create = functools.partial(create_state, optimizer=optimizer, ema=ema)
        return jax.jit(create, out_shardings=shardings)(pretrained())
    # Steps fold in 0, 1, ...: the last number is free for this.
    rng = jax.random.fold_in(jax.random.key(plan.seed), 2**31 - 1)
    return jax.jit(_create(task, optimizer, plan), out_shardings=shardings)(rng)


def _create(task, optimizer, plan) -> Callable[[jax.Array], TrainState]:
    return lambda rng: create_state(task.init(rng), optimizer, ema=plan.ema_decay > 0)


def jit_train_step(task: Task, optimizer: optax.GradientTransformation, plan: Plan) -> Callable:
    """The training step, jitted; it takes the memory of the state that it is given."""
    mesh = make_mesh()
    step = make_train_step(
        task.loss_fn,
        optimizer,
        plan.seed,
        plan.total_steps,
        ema_decay=plan.ema_decay,
        accumulate=plan.accumulate,
        shards=mesh.size,
    )
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(task, optimizer, plan))
    return jax.jit(step, out_shardings=(shardings, replicated(mesh)), donate_argnums=0)


def make_evaluate(task: Task, batches: Batches) -> Callable[[TrainState], dict[str, float]]:
    """``evaluate(state)``: means over every evaluation image, under names ``eval_...``."""
    mesh = make_mesh()
    eval_step = jax.jit(task.eval_fn, out_shardings=replicated(mesh))

    def evaluate(state: TrainState) -> dict[str, float]:
        # A moving average may be split over the devices.
        variables = jax.device_put(state.variables, replicated(mesh))
        sums: dict[str, float] = {}
        for batch in batches.eval():
            output = eval_step(**variables, batch=shard(batch, mesh))
            for name, value in jax.device_get(output).items():
                sums[name] = sums.get(name, 0.0) + float(value)
        count = sums.pop("count")
        return {f"eval_{name}": value / count for name, value in sums.items()}

    return evaluate
