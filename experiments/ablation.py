"""Ablate radix R, cardinality K and width D of a recipe over seeds.

    python -m experiments.ablation --config=configs/digits.py --grid=1s1x64d,2s1x64d,4s1x64d \
        --seeds=3 --workdir=runs/ablation

Every cell of the grid is an ordinary training run in DIR/CELL/seed_N: an interrupted ablation
goes on where it stopped. Leaves DIR/results.csv (a line a run), DIR/table.md (mean and spread)
and DIR/accuracy.png.
"""

import csv
import statistics
from pathlib import Path

import matplotlib.figure
from absl import flags
from ml_collections import ConfigDict, config_flags

from resnest_jax import commands, create_model, runs
from resnest_jax.errors import InputError

CONFIG = config_flags.DEFINE_config_file("config", None, "The recipe.", lock_config=True)
GRID = flags.DEFINE_list("grid", None, "Cells RsKxDd, for instance 1s1x64d,2s1x64d.")
SEEDS = flags.DEFINE_integer("seeds", 3, "Runs a cell, with seeds 0, 1, ...", lower_bound=1)
WORKDIR = flags.DEFINE_string("workdir", None, "Where the runs and the results are kept.")
flags.mark_flags_as_required(["config", "grid", "workdir"])

FIELDS = ("cell", "seed", "params", "eval_top1", "eval_top5", "eval_loss", "step")


def cell_configs(config: ConfigDict, grid: list[str]) -> dict[str, ConfigDict]:
    """The config of each cell: the recipe with its model renamed.

    Raises:
      InputError: if a cell appears twice or names no model.
    """
    family = config.model.name.split("_fast_")[0]
    configs = {}
    for cell in grid:
        if cell in configs:
            raise InputError(f"--grid: cell {cell} appears twice")
        configs[cell] = config.copy_and_resolve_references()
        configs[cell].model.name = f"{family}_fast_{cell}"
        fields = configs[cell].model.to_dict()
        create_model(fields.pop("name"), **fields)
    return configs


def run_cells(configs: dict[str, ConfigDict], seeds: int, workdir: Path) -> list[dict]:
    """Train every cell with every seed; a row of results each."""
    rows = []
    for seed in range(seeds):
        for cell, config in configs.items():
            print(f"--- {cell}, seed {seed}: run {len(rows) + 1} of {seeds * len(configs)}")
            config.seed = seed
            summary = runs.train(config, workdir / cell / f"seed_{seed}")
            row = {"cell": cell, "seed": seed, **summary}
            rows.append({field: row[field] for field in FIELDS})
    return rows


def write_results(rows: list[dict], workdir: Path) -> str:
    """Write results.csv, table.md and accuracy.png; returns the table."""
    with (workdir / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(rows)
    cells: dict[str, list[dict]] = {}
    for row in rows:
        cells.setdefault(row["cell"], []).append(row)
    lines = [
        "| cell | params | top-1 mean | sd over seeds | min | max |",
        "|---|---|---|---|---|---|",
    ]
    figure = matplotlib.figure.Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for position, (cell, results) in enumerate(cells.items()):
        top1 = [100 * result["eval_top1"] for result in results]
        spread = f"{statistics.stdev(top1):.2f}" if len(top1) > 1 else ""
        lines.append(
            f"| {cell} | {results[0]['params']:,} | {statistics.mean(top1):.2f} | {spread} "
            f"| {min(top1):.2f} | {max(top1):.2f} |"
        )
        axes.plot([position] * len(top1), top1, "o", color="C0", alpha=0.5)
        axes.plot(position, statistics.mean(top1), "_", color="black", markersize=24)
    axes.set(xticks=range(len(cells)), xticklabels=list(cells), ylabel="eval top-1 (%)")
    axes.grid(axis="y", alpha=0.3)
    figure.savefig(workdir / "accuracy.png", dpi=100)
    table = "\n".join(lines) + "\n"
    (workdir / "table.md").write_text(table)
    return table


def main(_: list[str]) -> None:
    """Run the ablation that the flags name."""
    workdir = Path(WORKDIR.value).expanduser()
    rows = run_cells(cell_configs(CONFIG.value, GRID.value), SEEDS.value, workdir)
    print(write_results(rows, workdir))


if __name__ == "__main__":
    commands.run(main)
