"""What a run says and restores when it is resumed."""

import itertools
from pathlib import Path

import jax

from resnest_jax.training.checkpoints import Checkpoints
from resnest_jax.training.distributed import is_main
from resnest_jax.training.metric_writer import METRICS, Line, read_metrics
from resnest_jax.training.run import Run, TrainOptions


def warn_of_devices(loop_state: dict, options: TrainOptions) -> None:
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


def lines_of_old_run(run: Run, checkpoints: Checkpoints, workdir: Path, start: int) -> list[Line]:
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
