"""The training loop: steps, evaluation, checkpoints, and going on where a run stopped."""

import contextlib
import math
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import optax

from resnest_jax.errors import DivergenceError, PreemptedError
from resnest_jax.training.checkpoints import Checkpoints
from resnest_jax.training.mesh import make_mesh, shard
from resnest_jax.training.metrics import MetricsWriter, Progress, read_metrics, write_json
from resnest_jax.training.processes import Preemption, is_main
from resnest_jax.training.programs import (
    Batches,
    Plan,
    Task,
    abstract_state,
    initial_state,
    jit_train_step,
    make_evaluate,
)
from resnest_jax.training.state import Metrics, TrainState


def fit(
    task: Task,
    batches: Batches,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    plan: Plan,
    checkpoints: Checkpoints,
    workdir: Path,
    pretrained: Callable[[], dict] | None = None,
) -> dict:
    """Train to the end of the plan, from the last checkpoint on; returns the summary.

    Writes metrics and checkpoints below ``workdir``. Without a checkpoint it starts from the
    variables that ``pretrained`` gives, or from new ones.

    Raises:
      DivergenceError: at a loss or gradient that is not finite; the last checkpoint stays.
      PreemptedError: after SIGTERM, with the step that was under way finished and stored.
      StorageError: if a checkpoint cannot be written; the last whole one stays.
    """
    mesh = make_mesh()
    if checkpoints.any():
        state, progress = checkpoints.restore(abstract_state(task, optimizer, plan))
        _warn_of_groups(progress, plan)
    else:
        state, progress = initial_state(task, optimizer, plan, pretrained), {}
    train_step = jit_train_step(task, optimizer, plan)
    evaluate = make_evaluate(task, batches)
    start = int(state.step)
    begun = time.perf_counter() - progress.get("seconds", 0.0)
    window = _Window(plan, schedule, progress.get("window", []), _diverged(batches, workdir))
    console = Progress(start, plan.total_steps)
    with (
        Preemption() as preemption,
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
                console.show(step, loss=f"{values['loss']:.4f}", rate=f"{rate:.0f} images/s")
                checkpoints.check()
            results = None
            if ends:
                results = evaluate(state)
                writer.write(step, {"epoch": window.epoch(step), **results})
                console.show(step, **{name: f"{value:.4f}" for name, value in results.items()})
            preempted = preemption.reached(step)
            if ends or preempted or (plan.save_every and step % plan.save_every == 0):
                seconds = time.perf_counter() - begun
                kept = {
                    "seconds": seconds,
                    "window": window.snapshot(),
                    "groups": plan.groups,
                }
                checkpoints.save(state, results, kept)
                window.restart_clock()
            if preempted and step < plan.total_steps:
                raise PreemptedError(
                    f"told to stop after step {step} of {plan.total_steps}, which is stored; "
                    "the same command goes on from there"
                )
    return _summarise(task, state, workdir, time.perf_counter() - begun) if is_main() else {}


def _warn_of_groups(progress: dict, plan: Plan) -> None:
    """Say so if the number of devices, and with it what is normalised together, has changed."""
    before = progress.get("groups", plan.groups)
    if before != plan.groups and is_main():
        print(
            f"batch norm and mixing had the batch in {before} part(s), one a device, and now have "
            f"{plan.groups}: what follows is not what {before} device(s) would give",
            flush=True,
        )


def _diverged(batches: Batches, workdir: Path) -> Callable[[int, dict], DivergenceError]:
    """What makes the error of a step whose metrics are not finite, and writes its records down."""

    def diverged(step: int, bad: dict[str, float]) -> DivergenceError:
        path = workdir / f"divergence_{jax.process_index()}.json"
        keys = batches.train_keys(step - 1)
        write_json(path, {"step": step, "records": keys})
        found = ", ".join(f"{name} is {value}" for name, value in bad.items())
        return DivergenceError(
            f"step {step}: {found}; its {len(keys)} records ({', '.join(keys[:2])}, ...) are "
            f"listed in {path}; the last checkpoint is kept; lower the learning rate"
        )

    return diverged


class _Window:
    """Metrics since the last line, read from the device one step late so that it never waits."""

    def __init__(
        self,
        plan: Plan,
        schedule: optax.Schedule,
        values: list[dict[str, float]],
        diverged: Callable[[int, dict], DivergenceError],
    ):
        self._plan, self._schedule, self._diverged = plan, schedule, diverged
        self._pending: tuple[int, Metrics] | None = None
        self._values = values
        self._timed = 0
        self.restart_clock()

    def epoch(self, step: int) -> float:
        return round(step / self._plan.steps_per_epoch, 4)

    def restart_clock(self) -> None:
        self._timed = 0
        self._begun = time.perf_counter()

    def add(self, step: int, metrics: Metrics) -> None:
        self._read()
        self._pending = (step, metrics)

    def snapshot(self) -> list[dict[str, float]]:
        """All since the last line, for a run that goes on from here."""
        self._read()
        return self._values

    def close(self, step: int) -> tuple[dict[str, float], float]:
        """Means since the last call, and the images a second."""
        self._read()
        values = {name: np.mean([v[name] for v in self._values]) for name in self._values[0]}
        rate = self._timed * self._plan.batch_size / (time.perf_counter() - self._begun)
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
            raise self._diverged(step, bad)
        self._values.append(values)
        self._timed += 1
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
