"""Draw the curves of a run."""

from collections.abc import Mapping
from pathlib import Path

import jax
import matplotlib.figure
import numpy as np
import optax

from resnest_jax.training.metric_writer import read_metrics


def plot_curves(workdir: Path, panels: Mapping[str, Mapping[str, str]]) -> None:
    """Draw ``DIR/metrics.jsonl`` as ``DIR/curves.png``, by epoch.

    Args:
      panels: title -> metric -> label; a title with "%" shows fractions as percent.
    """
    lines = read_metrics(workdir)
    # Not pyplot, which has global state and opens windows.
    panels = dict(panels) | {"learning rate": {"learning_rate": "learning rate"}}
    figure = matplotlib.figure.Figure(figsize=(5 * len(panels), 4), layout="constrained")
    row = figure.subplots(1, len(panels))
    for axes, (title, curves) in zip(row, panels.items(), strict=True):
        for key, label in curves.items():
            points = [(line["epoch"], line[key]) for line in lines if {key, "epoch"} <= line.keys()]
            scale = 100 if "%" in title else 1
            axes.plot([x for x, _ in points], [y * scale for _, y in points], label=label)
        axes.set(xlabel="epoch", ylabel=title)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(workdir / "curves.png", dpi=100)


def plot_schedule(schedule: optax.Schedule, steps: int, steps_per_epoch: float, to: Path) -> None:
    """Draw the learning rate by epoch as ``schedule.png`` in the folder ``to``."""
    figure = matplotlib.figure.Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    at = np.unique(np.linspace(0, steps - 1, min(steps, 1000), dtype=int))
    axes.plot(at / steps_per_epoch, [float(jax.device_get(schedule(step))) for step in at])
    axes.set(xlabel=f"epoch ({steps} steps)", ylabel="learning rate")
    axes.grid(alpha=0.3)
    figure.savefig(to / "schedule.png", dpi=100)
