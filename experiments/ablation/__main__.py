"""Ablate radix R, cardinality K, width D, or any field of a recipe, over seeds.

    python -m experiments.ablation --config=configs/cluttered_digits.py \
        --grid=0s1x64d,1s1x64d,2s1x64d,4s1x64d,1s2x48d,2s2x48d --seeds=3 --workdir=runs/ablation
    python -m experiments.ablation --costs_only --preset=radix --workdir=runs/costs

Every cell of the grid with every seed is a training run below DIR/runs. The same command resumes a
stopped sweep and repeats no finished run. A failed run is reported; the others continue, and the
exit code is 1. Writes DIR/results.csv and results.json (one line per run), table.md, tradeoff.png,
curves.png and costs.json. Each run uses all accelerators: on a machine with any, leave
--jobs at 1. Costs are measured where the command runs; for those of another machine, run it there
with --costs_only first, in the same directory.
"""

import concurrent.futures
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from experiments.ablation import costs, jobs, report
from experiments.ablation.grid import (
    PRESETS,
    Cell,
    cell_config,
    cell_model_fields,
    family_of,
    parse_grid,
    refuse_twins,
)
from experiments.ablation.plots import plot_curves, plot_tradeoff
from experiments.ablation.significance import compare
from experiments.ablation.sweep import make_jobs, outcome, run_jobs
from resnest_jax import arguments, cli
from resnest_jax.config import complete, model_fields
from resnest_jax.errors import InputError
from resnest_jax.files import write_atomic, writing
from resnest_jax.models.resnest import MIN_SIZE

FLAGS = flags.FlagValues()
CONFIG = config_flags.DEFINE_config_file("config", None, "The recipe.", flag_values=FLAGS)
GRID = flags.DEFINE_list(
    "grid", [], "Cells RsKxDd, for instance 1s1x64d,2s1x64d.", flag_values=FLAGS
)
AXIS = flags.DEFINE_multi_string(
    "axis",
    [],
    "A config key and its values; every cell runs with every value: epochs=5,10.",
    flag_values=FLAGS,
)
PRESET = flags.DEFINE_enum("preset", None, list(PRESETS), "Cells of the paper.", flag_values=FLAGS)
BASELINE = flags.DEFINE_string(
    "baseline", None, "Cell to compare with; default: the first.", flag_values=FLAGS
)
SEEDS = flags.DEFINE_integer(
    "seeds", 3, "Runs per cell; the first seed is the recipe's.", lower_bound=1, flag_values=FLAGS
)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Directory of the runs and results.", required=True, flag_values=FLAGS
)
EXECUTOR = flags.DEFINE_enum(
    "executor",
    "process",
    jobs.EXECUTORS,
    "Executor: processes on this machine, or submitit's local or slurm.",
    flag_values=FLAGS,
)
JOBS = flags.DEFINE_integer("jobs", 1, "Runs at a time.", lower_bound=1, flag_values=FLAGS)
SUBMITIT = flags.DEFINE_multi_string(
    "submitit", [], "A parameter of submitit, for instance slurm_partition=gpu.", flag_values=FLAGS
)
COSTS_ONLY = flags.DEFINE_bool(
    "costs_only", False, "Measure the costs of the models; train nothing.", flag_values=FLAGS
)
IMAGE_SIZE = flags.DEFINE_integer(
    "image_size",
    None,
    "Side of the images for costs; default: the recipe's, or 224.",
    lower_bound=MIN_SIZE,
    flag_values=FLAGS,
)
BATCH_SIZE = flags.DEFINE_integer(
    "batch_size",
    None,
    "Batch size for costs; default: the recipe's, at most 64.",
    lower_bound=1,
    flag_values=FLAGS,
)
REPEATS = flags.DEFINE_integer(
    "repeats", 10, "Number of timed rounds.", lower_bound=2, flag_values=FLAGS
)


def main(_: list[str]) -> int:
    """Run the sweep."""
    workdir = arguments.local_path(WORKDIR).resolve()
    cells = parse_grid(GRID.value, AXIS.value, PRESET.value)
    baseline = BASELINE.value or cells[0].name
    if baseline not in [cell.name for cell in cells]:
        raise InputError(f"--baseline: {baseline!r} is not a cell; there are {_names(cells)}")
    if CONFIG.value is None:
        if not COSTS_ONLY.value:
            raise InputError("--config must name a recipe, unless --costs_only is given")
        models = {cell.name: cell_model_fields(cell, family_of(None)) for cell in cells}
        return write_costs(models, _setting(None), workdir)
    configs = {cell.name: cell_config(CONFIG.value, cell) for cell in cells}
    refuse_twins(configs)
    models = cell_models(configs)
    if COSTS_ONLY.value:
        return write_costs(models, _setting(CONFIG.value), workdir)
    return sweep(cells, configs, models, baseline, workdir)


def sweep(
    cells: list[Cell],
    configs: dict[str, ConfigDict],
    models: dict[str, dict],
    baseline: str,
    workdir: Path,
) -> int:
    """Run the sweep and write the results; return the exit code."""
    launch = jobs.make_launch(EXECUTOR.value, workdir, SUBMITIT.value)
    todo = make_jobs(cells, configs, SEEDS.value, workdir)
    run_jobs(todo, launch, JOBS.value)
    rows = [outcome(job) for job in todo]
    top1 = report.accuracies(rows)
    comparisons = compare(top1, baseline)
    about = {
        "baseline": baseline,
        "seeds": SEEDS.value,
        "cells": {cell.name: configs[cell.name].to_dict() for cell in cells},
        "comparisons": [comparison._asdict() for comparison in comparisons],
    }
    report.write_results(rows, about, workdir)
    plot_curves(todo, workdir / "curves.png")
    accuracy = report.accuracy_table(rows, comparisons, baseline)
    write_atomic(workdir / "table.md", accuracy.encode())  # in case measuring fails
    if not any(top1.values()):
        raise InputError(f"no run has a result; the first failed with: {rows[0]['error']}")
    setting = _setting(CONFIG.value)
    measured, device = costs.measure(models, setting, workdir / costs.COSTS)
    plot_tradeoff(top1, measured, baseline, workdir / "tradeoff.png")
    cost = report.cost_table(measured, setting, device)
    _write_table([accuracy, cost, report.published_tables(models)], workdir)
    return int(any(row["error"] for row in rows))


def write_costs(models: dict[str, dict], setting: costs.Setting, workdir: Path) -> int:
    """Measure the costs of the models and write the table; return the exit code."""
    with writing("workdir", workdir):
        workdir.mkdir(parents=True, exist_ok=True)
    measured, device = costs.measure(models, setting, workdir / costs.COSTS)
    table = report.cost_table(measured, setting, device)
    _write_table([table, report.published_tables(models)], workdir)
    return 0


def cell_models(configs: dict[str, ConfigDict]) -> dict[str, dict]:
    """Check the run of each cell; return fields of its model, with the number of classes.

    This prepares the data sets, before parallel runs start.

    Raises:
      InputError: if a run would fail at its start.
    """
    # In a process of its own: a run needs the accelerators, which one process holds at a time.
    with concurrent.futures.ProcessPoolExecutor(1) as pool:
        classes = pool.submit(jobs.check, configs).result()
    return {
        cell: {"num_classes": classes[cell], **model_fields(config)}
        for cell, config in configs.items()
    }


def _setting(config: ConfigDict | None) -> costs.Setting:
    image_size, batch_size = (224, 8)
    if config is not None:
        config = complete(config)
        image_size, batch_size = config.image_size, min(config.batch_size, 64)
    if not isinstance(image_size, int):
        image_size = max(side for _, side in image_size)  # pairs (epoch, side)
    return costs.Setting(
        IMAGE_SIZE.value or image_size, BATCH_SIZE.value or batch_size, REPEATS.value
    )


def _names(cells: list[Cell]) -> str:
    return ", ".join(cell.name for cell in cells)


def _write_table(parts: list[str], workdir: Path) -> None:
    table = "\n".join(part for part in parts if part)
    write_atomic(workdir / "table.md", table.encode())
    print(f"\n{table}")


if __name__ == "__main__":
    cli.run(main, FLAGS)
