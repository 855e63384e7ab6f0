"""Plot accuracy against cost, and accuracy by epoch."""

from pathlib import Path

import matplotlib.figure
import numpy as np

from experiments.ablation.report import Costs
from experiments.ablation.sweep import METRIC, Job
from resnest_jax.training.metric_writer import read_metrics

UNKNOWN = [np.nan] * 3  # of a cell that could not be timed; matplotlib skips it


def plot_tradeoff(
    top1: dict[str, dict[int, float]], costs: Costs, baseline: str, path: Path
) -> None:
    """Plot mean accuracy, and its range over seeds, against speed, GMACs and parameters."""
    panels = {
        "inference, images/s": lambda cost: cost.get("infer", UNKNOWN)[1],
        "training, images/s": lambda cost: cost.get("train", UNKNOWN)[1],
        "GMACs": lambda cost: cost["gmacs"],
        "parameters (1e6)": lambda cost: cost["params"] / 1e6,
    }
    figure = matplotlib.figure.Figure(figsize=(17, 4.2), layout="constrained")
    row = figure.subplots(1, 4, sharey=True)
    for axes, (label, cost_of) in zip(row, panels.items(), strict=True):
        for i, (cell, by_seed) in enumerate(top1.items()):
            if not by_seed:
                continue
            values = list(by_seed.values())
            mean = np.mean(values)
            errors = [[mean - min(values)], [max(values) - mean]]
            marker = "s" if cell == baseline else "o"
            x = cost_of(costs[cell])
            axes.errorbar(x, mean, errors, fmt=marker, color=f"C{i % 10}", capsize=3, label=cell)
        axes.set_xlabel(label)
        axes.locator_params(axis="x", nbins=5)  # small numbers have long tick labels
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("eval top-1 (%), mean and range over seeds")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right center")
    figure.savefig(path, dpi=100)


def plot_curves(jobs: list[Job], path: Path) -> None:
    """Plot evaluation accuracy and training loss by epoch: mean and range over the seeds."""
    figure = matplotlib.figure.Figure(figsize=(12, 4.5), layout="constrained")
    panels = {METRIC: ("eval top-1 (%)", 100), "loss": ("training loss", 1)}
    cells = dict.fromkeys(job.cell for job in jobs)
    for axes, (key, (label, scale)) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        for i, cell in enumerate(cells):
            curves = [_curve(job, key) for job in jobs if job.cell == cell and job.done]
            if not curves:
                continue
            epochs, values = curves[0][0], scale * np.array([values for _, values in curves])
            axes.plot(epochs, values.mean(0), color=f"C{i % 10}", label=cell)
            axes.fill_between(epochs, values.min(0), values.max(0), color=f"C{i % 10}", alpha=0.15)
        axes.set(xlabel="epoch", ylabel=label)
        axes.grid(alpha=0.3)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right center")
    figure.savefig(path, dpi=100)


def _curve(job: Job, key: str) -> tuple[list[float], list[float]]:
    lines = [line for line in read_metrics(job.folder) if key in line]
    return [line["epoch"] for line in lines], [line[key] for line in lines]
