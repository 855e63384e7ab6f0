"""Draw the curves of a run."""

from pathlib import Path

import jax
import matplotlib.figure
import numpy as np
import optax
from matplotlib.axes import Axes

from resnest_jax.training.metric_writer import read_metrics
from resnest_jax.training.run import Run

SETTLED = 0.2  # fraction of the run after which no value may lie outside of its panel


def plot_curves(workdir: Path, run: Run) -> None:
    """Draw ``DIR/metrics.jsonl`` and the learning rate as ``DIR/curves.png``, by epoch.

    The panels are those of the task; a title with "%" shows fractions as percent.
    """
    lines = read_metrics(workdir)
    panels = run.task.curves
    # Not pyplot, which has global state and opens windows.
    figure = matplotlib.figure.Figure(figsize=(5 * (len(panels) + 1), 4), layout="constrained")
    *row, rate = figure.subplots(1, len(panels) + 1)
    for axes, (title, curves) in zip(row, panels.items(), strict=True):
        scale = 100 if "%" in title else 1
        found = {}
        for key, label in curves.items():
            points = [
                (line["epoch"], scale * line[key])
                for line in lines
                if {key, "epoch"} <= line.keys()
            ]
            found[label] = np.array(points, float).reshape(-1, 2)
            axes.plot(*found[label].T, label=label)
        axes.set(xlabel="epoch", title=title)
        axes.grid(alpha=0.3)
        axes.legend()
        _cut_the_start(axes, list(found.values()))
    _plot_rate(rate, run.schedule, run.options.total_steps, run.options.steps_per_epoch)
    rate.set_title("learning rate")
    figure.savefig(workdir / "curves.png", dpi=100)


def _cut_the_start(axes: Axes, curves: list[np.ndarray]) -> None:
    """Fit the panel to its first curve and to what the others are once the run has settled.

    The first evaluations may be far off, since running statistics have not settled.
    """
    last = max((curve[-1, 0] for curve in curves if len(curve)), default=0.0)
    kept = [curve[curve[:, 0] >= SETTLED * last, 1] for curve in curves]
    values = np.concatenate([curves[0][:, 1], *kept])
    if len(values):
        low, high = values.min(), values.max()
        margin = 0.05 * (high - low) or 0.05
        axes.set_ylim(low - margin, high + margin)


def plot_schedule(schedule: optax.Schedule, steps: int, steps_per_epoch: float, to: Path) -> None:
    """Draw the learning rate by epoch as ``schedule.png`` in the folder ``to``."""
    figure = matplotlib.figure.Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    _plot_rate(axes, schedule, steps, steps_per_epoch)
    axes.set_ylabel("learning rate")
    figure.savefig(to / "schedule.png", dpi=100)


def _plot_rate(axes: Axes, schedule: optax.Schedule, steps: int, steps_per_epoch: float) -> None:
    at = np.unique(np.linspace(0, steps - 1, min(steps, 1000), dtype=int))
    axes.plot(at / steps_per_epoch, jax.device_get(jax.vmap(schedule)(at)))
    axes.set(xlabel=f"epoch ({steps} steps)")
    axes.grid(alpha=0.3)
