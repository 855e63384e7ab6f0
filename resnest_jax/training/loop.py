"""The training loop: steps, evaluation, checkpoints, and resuming."""

import contextlib
import itertools
import math
import signal
import time
from functools import reduce
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from resnest_jax.errors import DivergenceError, PreemptedError, StorageError
from resnest_jax.files import write_json
from resnest_jax.training.checkpoints import Checkpoints
from resnest_jax.training.distributed import Preemption, is_main
from resnest_jax.training.evaluation import make_evaluate
from resnest_jax.training.mesh import shard
from resnest_jax.training.metric_writer import (
    METRICS,
    Line,
    MetricsWriter,
    ProgressMeter,
    read_metrics,
)
from resnest_jax.training.patience import Patience
from resnest_jax.training.run import Run, TrainOptions
from resnest_jax.training.state import TrainState, abstract_state, initial_state
from resnest_jax.training.step import jit_train_step
from resnest_jax.training.task import Metrics, PyTree


def fit(run: Run, checkpoints: Checkpoints, workdir: Path) -> dict:
    """Train to the last step, resuming from the last checkpoint if any; return the summary.

    Writes metrics and checkpoints below ``workdir``. With ``options.patience`` the run may end
    earlier; the summary then says ``stopped_early``.

    Raises:
      DivergenceError: if a loss or gradient is not finite; the last checkpoint is kept.
      PreemptedError: after SIGTERM, with the current step finished and saved.
      StorageError: if a checkpoint cannot be written; the last complete one is kept.
    """
    options = run.options
    if checkpoints.any():
        state, loop_state = checkpoints.restore(abstract_state(run))
        _warn_of_devices(loop_state, options)
    else:
        state, loop_state = initial_state(run), {}
    train_step = jit_train_step(run)
    evaluate = make_evaluate(run)
    start = int(jax.device_get(state.step))
    stored = loop_state.get("metrics")
    if stored is None and start:
        stored = _lines_of_old_run(run, checkpoints, workdir, start)
    begun = time.perf_counter() - loop_state.get("seconds", 0.0)
    window = _Window(run, loop_state.get("window", []), workdir, start, checkpoints)
    console = ProgressMeter(start, options.total_steps)
    patience = Patience(options.patience, **loop_state.get("patience", {}))
    end = start if patience.over else options.total_steps
    if is_main():
        if start:
            print(f"resuming after step {start} of {options.total_steps}", flush=True)
        if start < end:
            print("compiling the training step", flush=True)
    with (
        Preemption() as preemption,
        MetricsWriter(workdir, start, stored, run.tracker) as writer,
        contextlib.closing(run.batches.train(start_step=start)) as stream,
    ):
        for step in range(start + 1, end + 1):
            with jax.transfer_guard_device_to_host("disallow"):
                state, metrics = train_step(state, shard(next(stream), run.mesh))
                window.add(step, metrics)
            ends = step % options.eval_every == 0 or step == options.total_steps
            if step == start + 1:  # which compiled
                window.forget_time()
                console.restart(step)
            if step % options.log_every == 0 or ends:
                values, rate = window.close(step)
                window.check_statistics(step, state.batch_stats)
                writer.write(step, values)
                shown = {"loss": f"{values['loss']:.4f}"}
                if math.isfinite(rate):  # not that of the step that compiled
                    writer.write_others(step, {"images_per_second": rate})
                    shown["rate"] = f"{rate:.0f} images/s"
                console.show(step, **shown)
                checkpoints.check()
            results = None
            if ends:
                results = evaluate(state)
                patience.add(results[run.task.best_metric])
                writer.write(step, {"epoch": window.epoch(step), **results})
                console.show(step, **{name: f"{value:.4f}" for name, value in results.items()})
            preempted = preemption.reached(step)
            due = options.save_every and step % options.save_every == 0
            if ends or preempted or due:
                loop_state = {
                    "seconds": time.perf_counter() - begun,
                    "window": window.snapshot(),
                    "groups": options.norm_groups,
                    "devices": run.mesh.size,
                    "metrics": writer.lines,
                    "patience": patience.snapshot(),
                }
                checkpoints.save(state, results, loop_state)
                window.restart_clock()
            if patience.over:
                break
            if preempted and step < options.total_steps:
                received = preemption.signal or signal.SIGTERM
                raise PreemptedError(
                    f"got {received.name} after step {step} of {options.total_steps}, which is "
                    "saved; the same command resumes from there",
                    received,
                )
    seconds = time.perf_counter() - begun
    if not is_main():
        return {}
    summary = _summarise(run, state, writer.lines, seconds)
    return summary | _early_stop(patience, summary["step"], run) if patience.limit else summary


def _early_stop(patience: Patience, step: int, run: Run) -> dict[str, bool]:
    """Say if the run ended before its last step, and note it."""
    stopped = step < run.options.total_steps
    if stopped:
        print(
            f"stopped early after step {step} of {run.options.total_steps}: no better "
            f"{run.task.best_metric} than {patience.best:.4f} in {patience.waited} evaluation(s); "
            f"to continue, use --from_step={step} with a larger --config.patience",
            flush=True,
        )
    return {"stopped_early": stopped}


def _warn_of_devices(loop_state: dict, options: TrainOptions) -> None:
    """Say what another number of devices changes, if it has changed."""
    groups, devices = options.norm_groups, jax.device_count()
    before = loop_state.get("groups", groups), loop_state.get("devices", devices)
    if before == (groups, devices) or not is_main():
        return
    if before[0] != groups:
        print(
            f"begun on {before[0]} device(s), resumed on {groups}: batch norm and mixing work per "
            f"device, so the results differ from those of {before[0]} device(s)",
            flush=True,
        )
    else:
        effect = "equal to rounding"
        if options.accumulate > 1:
            effect = "other ones, as the parts of an accumulated batch hold other images"
        print(
            f"begun on {before[1]} device(s), resumed on {devices}: the results are {effect}",
            flush=True,
        )


def _lines_of_old_run(run: Run, checkpoints: Checkpoints, workdir: Path, start: int) -> list[Line]:
    """Return the metrics up to a checkpoint that does not hold them, as newer ones do.

    They are those of the file, completed by the evaluations of the checkpoints. Says what is
    missing.
    """
    options, metric = run.options, run.task.best_metric
    lines = [line for line in read_metrics(workdir) if line["step"] <= start]
    known = {line["step"] for line in lines if metric in line}
    for step, results in checkpoints.evaluations().items():
        if step <= start and step not in known:
            epoch = round(step / options.steps_per_epoch, 4)
            lines.append({"step": step, "epoch": epoch, **results})
    lines.sort(key=lambda line: (line["step"], metric in line))
    steps = [0, *(line["step"] for line in lines if metric not in line), start]
    missing = [(a + 1, b) for a, b in itertools.pairwise(steps) if b - a > options.log_every]
    if missing and is_main():
        ranges = ", ".join(f"{first} to {last}" for first, last in missing[:3])
        print(f"{workdir / METRICS} has no lines of steps {ranges}", flush=True)
    return lines


class _Window:
    """Metrics since the last line; read one step late, to keep the device busy."""

    def __init__(
        self,
        run: Run,
        values: list[dict[str, float]],
        workdir: Path,
        start_step: int,
        checkpoints: Checkpoints,
    ):
        self._run, self._workdir, self._start_step = run, workdir, start_step
        self._checkpoints = checkpoints
        self._pending: tuple[int, Metrics] | None = None
        self._values = values
        self._timed = 0
        self.restart_clock()

    def epoch(self, step: int) -> float:
        return round(step / self._run.options.steps_per_epoch, 4)

    def restart_clock(self) -> None:
        self._timed = 0
        self._begun = time.perf_counter()

    def forget_time(self) -> None:
        """Wait for the steps so far, and leave them out of the rate."""
        self._read()
        self.restart_clock()

    def add(self, step: int, metrics: Metrics) -> None:
        self._read()
        self._pending = (step, metrics)

    def snapshot(self) -> list[dict[str, float]]:
        """Return all metrics since the last line, for a run that resumes here."""
        self._read()
        return list(self._values)  # it is written in the background

    def close(self, step: int) -> tuple[dict[str, float], float]:
        """Return the means since the last call and the images per second."""
        self._read()
        values = {name: np.mean([v[name] for v in self._values]) for name in self._values[0]}
        seconds = time.perf_counter() - self._begun
        rate = self._timed * self._run.options.batch_size / seconds if self._timed else math.nan
        self._values = []
        self.restart_clock()
        # The learning rate of the last of these steps.
        learning_rate = float(jax.device_get(self._run.schedule(step - 1)))
        values = {name: float(value) for name, value in values.items()}
        return {"epoch": self.epoch(step), **values, "learning_rate": learning_rate}, rate

    def check_statistics(self, step: int, batch_stats: PyTree) -> None:
        """Raise DivergenceError if running statistics, which no loss uses, are not finite."""
        if bool(jax.device_get(_all_finite(batch_stats))):
            return
        leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(batch_stats))
        path, leaf = next((path, leaf) for path, leaf in leaves if not np.isfinite(leaf).all())
        name = "/".join(part.key for part in path)
        raise self._diverged(step, {f"batch_stats/{name}": leaf[~np.isfinite(leaf)][0]})

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

    def _diverged(self, step: int, bad: dict[str, float]) -> DivergenceError:
        """Build the error for a non-finite step; list its records in a file."""
        path = self._workdir / f"divergence_{jax.process_index()}.json"
        keys = self._run.batches.train_keys(step - 1)
        write_json(path, {"step": step, "records": keys})
        found = ", ".join(f"{name} is {value}" for name, value in bad.items())
        return DivergenceError(
            f"step {step}: {found}; its {len(keys)} records ({', '.join(keys[:2])}, ...) are "
            f"listed in {path}; {self._advice(step)}"
        )

    def _advice(self, step: int) -> str:
        """Say what is known of the cause of a divergence, and what to do about it."""
        with contextlib.closing(self._run.batches.train(step - 1)) as stream:
            batch = next(stream)
        bad = [name for name, array in batch.items() if not np.isfinite(array).all()]
        if bad:
            return f"{', '.join(bad)} of this batch is not finite: mend the data, then start again"
        if step == 1:
            return (
                "the weights had not been updated yet, so the learning rate is not the cause: look "
                "at these records and at the weights that the run starts from"
            )
        stored = self._checkpoints.steps()
        at_once = step == self._start_step + 1
        earlier = [s for s in stored if s < (self._start_step if at_once else step)]
        if earlier:
            back = f"go back with --from_step=STEP (there are {', '.join(map(str, earlier))})"
        else:
            back = "start in another workdir" if stored else "start again"
        back += " and, for example, a lower --config.optimizer.base_learning_rate"
        if at_once:
            return f"the checkpoint of step {step - 1} may have diverged already: {back}"
        return f"look at these records, or {back}"


@jax.jit
def _all_finite(tree: PyTree) -> jax.Array:
    finite = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]
    return reduce(jnp.logical_and, finite, jnp.array(True))


def _summarise(run: Run, state: TrainState, lines: list[Line], seconds: float) -> dict:
    """Return the last and the best evaluation."""
    metric = run.task.best_metric
    evaluations = [line for line in lines if metric in line]
    if not evaluations:
        raise StorageError(
            f"{METRICS} and the checkpoints have lost all evaluations; the weights are intact: use "
            "the command evaluate"
        )
    # The last of equal ones, like the best checkpoint.
    best = max(reversed(evaluations), key=lambda line: line[metric])
    return {
        "params": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        **evaluations[-1],
        f"best_{metric}": best[metric],
        "best_step": best["step"],
        "seconds": round(seconds, 1),
    }
