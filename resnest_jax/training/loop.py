"""The training loop: steps, evaluation, checkpoints, and going on where a run stopped."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import jax
import numpy as np
import optax

from resnest_jax.errors import DivergenceError
from resnest_jax.training.checkpoints import Checkpoints
from resnest_jax.training.mesh import make_mesh, replicated, shard
from resnest_jax.training.metrics import MetricsWriter, Progress, read_metrics
from resnest_jax.training.state import LossFn, Metrics, TrainState, create_state, make_train_step

HostBatch = dict[str, np.ndarray]


class Task(Protocol):
    """What the loop needs to know of a task."""

    best_metric: str  # the evaluation metric, higher is better, by which checkpoints are kept
    loss_fn: LossFn

    def init(self, rng: jax.Array) -> dict:
        """Variables of the model."""

    def eval_fn(self, params, batch_stats, batch) -> Metrics:
        """Sums over the images of a batch whose mask is true, ``count`` among them."""


class Batches(Protocol):
    """What the loop needs to know of the data."""

    def train(self, start_step: int) -> Iterator[HostBatch]:
        """Endless batches from a step on."""

    def eval(self) -> Iterator[HostBatch]:
        """One pass over the evaluation images."""


class Plan(NamedTuple):
    """The length of a run and its rhythm, in steps."""

    total_steps: int
    steps_per_epoch: float
    log_every: int
    eval_every: int
    batch_size: int


def fit(
    task: Task,
    batches: Batches,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    plan: Plan,
    checkpoints: Checkpoints,
    workdir: Path,
    seed: int,
) -> dict:
    """Train to the end of the plan, from the last checkpoint on; returns the summary.

    Writes metrics and checkpoints below ``workdir``.

    Raises:
      DivergenceError: at a loss or gradient that is not finite; the last checkpoint stays.
    """
    mesh = make_mesh()
    state, seconds = checkpoints.restore(initial_state(task, optimizer, seed))
    train_step = jax.jit(
        make_train_step(task.loss_fn, optimizer, seed, plan.total_steps),
        out_shardings=replicated(mesh),
        donate_argnums=0,
    )
    evaluate = make_evaluate(task, batches)
    start = int(state.step)
    begun = time.perf_counter() - seconds
    window = _Window(plan, schedule)
    progress = Progress(start, plan.total_steps)
    with (
        MetricsWriter(workdir, start) as writer,
        contextlib.closing(batches.train(start_step=start)) as stream,
    ):
        for step in range(start + 1, plan.total_steps + 1):
            state, metrics = train_step(state, shard(next(stream), mesh))
            window.add(step, metrics)
            ends = step % plan.eval_every == 0 or step == plan.total_steps
            if step % plan.log_every == 0 or ends:
                values, rate = window.close(step)
                writer.write(step, values)
                writer.write_tensorboard(step, {"images_per_second": rate})
                progress.show(step, loss=f"{values['loss']:.4f}", rate=f"{rate:.0f} images/s")
            if ends:
                results = evaluate(state)
                writer.write(step, {"epoch": window.epoch(step), **results})
                progress.show(step, **{name: f"{value:.4f}" for name, value in results.items()})
                checkpoints.save(state, results, time.perf_counter() - begun)
                window.restart_clock()
    return _summarise(task, state, workdir, time.perf_counter() - begun)


def initial_state(task: Task, optimizer: optax.GradientTransformation, seed: int) -> TrainState:
    """The state before the first step, made on every device."""
    # Steps fold in 0, 1, ...: the last number is free for this.
    rng = jax.random.fold_in(jax.random.key(seed), 2**31 - 1)
    create = jax.jit(
        lambda rng: create_state(task.init(rng), optimizer), out_shardings=replicated(make_mesh())
    )
    return create(rng)


def make_evaluate(task: Task, batches: Batches) -> Callable[[TrainState], dict[str, float]]:
    """``evaluate(state)``: means over every evaluation image, under names ``eval_...``."""
    mesh = make_mesh()
    eval_step = jax.jit(task.eval_fn, out_shardings=replicated(mesh))

    def evaluate(state: TrainState) -> dict[str, float]:
        sums: dict[str, float] = {}
        for batch in batches.eval():
            output = eval_step(state.params, state.batch_stats, shard(batch, mesh))
            for name, value in jax.device_get(output).items():
                sums[name] = sums.get(name, 0.0) + float(value)
        count = sums.pop("count")
        return {f"eval_{name}": value / count for name, value in sums.items()}

    return evaluate


class _Window:
    """Metrics since the last line, read from the device one step late so that it never waits."""

    def __init__(self, plan: Plan, schedule: optax.Schedule):
        self._plan, self._schedule = plan, schedule
        self._pending: tuple[int, Metrics] | None = None
        self._values: list[dict[str, float]] = []
        self.restart_clock()

    def epoch(self, step: int) -> float:
        return round(step / self._plan.steps_per_epoch, 4)

    def restart_clock(self) -> None:
        self._begun = time.perf_counter()

    def add(self, step: int, metrics: Metrics) -> None:
        self._read()
        self._pending = (step, metrics)

    def close(self, step: int) -> tuple[dict[str, float], float]:
        """Means since the last call, and the images a second."""
        self._read()
        values = {name: np.mean([v[name] for v in self._values]) for name in self._values[0]}
        rate = len(self._values) * self._plan.batch_size / (time.perf_counter() - self._begun)
        self._values = []
        self.restart_clock()
        # The rate that the last of these steps used.
        learning_rate = float(self._schedule(step - 1))
        values = {name: float(value) for name, value in values.items()}
        return {"epoch": self.epoch(step), **values, "learning_rate": learning_rate}, rate

    def _read(self) -> None:
        if self._pending is None:
            return
        step, metrics = self._pending
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if bad := {name: value for name, value in values.items() if not math.isfinite(value)}:
            found = ", ".join(f"{name} is {value}" for name, value in bad.items())
            raise DivergenceError(
                f"step {step}: {found}; the last checkpoint is kept; lower the learning rate"
            )
        self._values.append(values)
        self._pending = None


def _summarise(task: Task, state: TrainState, workdir: Path, seconds: float) -> dict:
    """The last and the best evaluation, as metrics.jsonl has them."""
    evaluations = [line for line in read_metrics(workdir) if task.best_metric in line]
    # The last of equals, as the checkpoints keep it.
    best = max(reversed(evaluations), key=lambda line: line[task.best_metric])
    return {
        "params": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        **evaluations[-1],
        f"best_{task.best_metric}": best[task.best_metric],
        "best_step": best["step"],
        "seconds": round(seconds, 1),
    }
