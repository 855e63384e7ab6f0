"""The curves of a run as a picture."""

from pathlib import Path

import matplotlib.figure
import numpy as np
import optax

from resnest_jax.training.metrics import read_metrics


def plot_curves(workdir: Path) -> None:
    """Draw DIR/metrics.jsonl as DIR/curves.png: loss, accuracy and learning rate by epoch."""
    lines = read_metrics(workdir)
    # Not pyplot, whose global state and windows a library should leave alone.
    figure = matplotlib.figure.Figure(figsize=(15, 4), layout="constrained")
    panels = {
        "loss": {"loss": "train", "eval_loss": "eval"},
        "accuracy (%)": {"eval_top1": "eval top-1", "eval_top5": "eval top-5"},
        "learning rate": {"learning_rate": "learning rate"},
    }
    for axes, (title, curves) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        for key, label in curves.items():
            points = [(line["epoch"], line[key]) for line in lines if key in line]
            scale = 100 if "%" in title else 1
            axes.plot([x for x, _ in points], [y * scale for _, y in points], label=label)
        axes.set(xlabel="epoch", ylabel=title)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(workdir / "curves.png", dpi=100)


def plot_schedule(schedule: optax.Schedule, steps: int, steps_per_epoch: float, to: Path) -> None:
    """Draw the learning rate of every epoch as a picture in a folder: schedule.png."""
    figure = matplotlib.figure.Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    at = np.unique(np.linspace(0, steps - 1, min(steps, 1000), dtype=int))
    axes.plot(at / steps_per_epoch, [float(schedule(step)) for step in at])
    axes.set(xlabel=f"epoch ({steps} steps)", ylabel="learning rate")
    axes.grid(alpha=0.3)
    figure.savefig(to / "schedule.png", dpi=100)
