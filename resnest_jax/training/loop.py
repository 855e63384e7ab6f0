"""The training loop: steps, evaluation, checkpoints."""

import contextlib
import math
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax

from resnest_jax.errors import PreemptedError, StorageError
from resnest_jax.training.checkpoints import Checkpoints
from resnest_jax.training.distributed import Preemption, is_main
from resnest_jax.training.divergence import make_error
from resnest_jax.training.evaluation import make_evaluate
from resnest_jax.training.mesh import shard
from resnest_jax.training.metric_writer import METRICS, Line, MetricsWriter, ProgressMeter
from resnest_jax.training.patience import Patience
from resnest_jax.training.resume import lines_of_old_run, warn_of_devices
from resnest_jax.training.run import Run
from resnest_jax.training.state import TrainState, abstract_state, initial_state
from resnest_jax.training.statistics import recompute_statistics
from resnest_jax.training.step import jit_train_step
from resnest_jax.training.window import Window


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
    state, loop_state = _begin(run, checkpoints)
    start = int(jax.device_get(state.step))
    stored = loop_state.get("metrics")
    if stored is None and start:
        stored = lines_of_old_run(run, checkpoints, workdir, start)
    begun = time.perf_counter() - loop_state.get("seconds", 0.0)
    diverged = partial(make_error, run, checkpoints, workdir, start)
    window = Window(run, loop_state.get("window", []), diverged)
    patience = Patience(options.patience, **loop_state.get("patience", {}))
    end = start if patience.over else options.total_steps
    _announce(start, end, options.total_steps)
    console = ProgressMeter(start, options.total_steps)
    train_step, evaluate = jit_train_step(run), make_evaluate(run)
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
                window.check_statistics(step, state.batch_stats)
                _log(step, window, writer, console)
                checkpoints.check()
            if step == options.total_steps and options.recompute_batch_norm:
                state = recompute_statistics(run, state, stream)
                window.check_statistics(step, state.variables["batch_stats"])
            results = None
            if ends:
                results = evaluate(state)
                patience.add(results[run.task.best_metric])
                writer.write(step, {"epoch": window.epoch(step), **results})
                console.show(step, **{name: f"{value:.4f}" for name, value in results.items()})
            preempted = preemption.reached(step)
            if ends or preempted or (options.save_every and step % options.save_every == 0):
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
                raise _preempted(preemption.signal or signal.SIGTERM, step, options.total_steps)
    if not is_main():
        return {}
    summary = _summarise(run, state, writer.lines, time.perf_counter() - begun)
    return summary | _early_stop(patience, summary["step"], run) if patience.limit else summary


def _begin(run: Run, checkpoints: Checkpoints) -> tuple[TrainState, dict[str, Any]]:
    """Return the state to start from, and what the loop stored with it."""
    if not checkpoints.any():
        return initial_state(run), {}
    state, loop_state = checkpoints.restore(abstract_state(run))
    warn_of_devices(loop_state, run.options)
    return state, loop_state


def _announce(start: int, end: int, total: int) -> None:
    """Say what comes before the first line of progress."""
    if is_main():
        if start:
            print(f"resuming after step {start} of {total}", flush=True)
        if start < end:
            print("compiling the training step", flush=True)


def _log(step: int, window: Window, writer: MetricsWriter, console: ProgressMeter) -> None:
    """Write and show the metrics since the last line."""
    values, rate = window.close(step)
    writer.write(step, values)
    shown = {"loss": f"{values['loss']:.4f}"}
    if math.isfinite(rate):  # not that of the step that compiled
        writer.write_others(step, {"images_per_second": rate})
        shown["rate"] = f"{rate:.0f} images/s"
    console.show(step, **shown)


def _preempted(received: signal.Signals, step: int, total: int) -> PreemptedError:
    return PreemptedError(
        f"got {received.name} after step {step} of {total}, which is saved; the same command "
        "resumes from there",
        received,
    )


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
