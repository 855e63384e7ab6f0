"""Results of a sweep as files: results.csv, results.json, table.md."""

import csv
import io
import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from experiments.ablation.costs import Setting
from experiments.ablation.published import TRICKS, Published, published
from experiments.ablation.significance import Comparison, power_note, statement
from experiments.ablation.sweep import METRIC, Row
from resnest_jax.files import write_atomic

FIRST_FIELDS = ("cell", "seed", "config", "error", "model", "params", METRIC)

Costs = dict[str, dict[str, Any]]


def accuracies(rows: list[Row]) -> dict[str, dict[int, float]]:
    """Return top-1 in percent by cell and seed, without failed runs."""
    found: dict[str, dict[int, float]] = {row["cell"]: {} for row in rows}
    for row in rows:
        if not row["error"]:
            found[row["cell"]][row["seed"]] = 100 * row[METRIC]
    return found


def write_results(rows: list[Row], about: dict[str, Any], workdir: Path) -> None:
    """Write results.csv and results.json; when and how the runs were done does not change them."""
    fields = [*FIRST_FIELDS, *(field for row in rows for field in row)]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(fields)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(workdir / "results.csv", text.getvalue().encode())
    content = json.dumps({"sweep": about, "runs": rows}, indent=2) + "\n"
    write_atomic(workdir / "results.json", content.encode())


def accuracy_table(rows: list[Row], comparisons: list[Comparison], baseline: str) -> str:
    """Return the mean and spread per cell, a sentence per comparison, and the failed runs."""
    by_cell = {comparison.cell: comparison for comparison in comparisons}
    lines = [
        "| cell | seeds | top-1 % | sd | min | max | against the baseline | p |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for cell, by_seed in accuracies(rows).items():
        top1 = list(by_seed.values())
        if not top1:
            lines.append(f"| {cell} | 0 | failed | | | | | |")
            continue
        spread = f"{statistics.stdev(top1):.2f}" if len(top1) > 1 else ""
        difference = corrected = ""
        if cell == baseline:
            difference = "baseline"
        elif (c := by_cell.get(cell)) and c.seeds > 1:
            difference, corrected = f"{c.difference:+.2f} ± {c.margin:.2f}", f"{c.p:.3g}"
        lines.append(
            f"| {cell} | {len(top1)} | {statistics.mean(top1):.2f} | {spread} | {min(top1):.2f} "
            f"| {max(top1):.2f} | {difference} | {corrected} |"
        )
    lines += ["", *(f"- {statement(c, baseline)}" for c in comparisons)]
    if comparisons:
        lines += ["", power_note(accuracies(rows), baseline)]
    failures = [row for row in rows if row["error"]]
    if failures:
        lines += ["", "Failed:", ""]
        lines += [f"- {row['cell']}, seed {row['seed']}: {row['error']}" for row in failures]
    return "\n".join(lines) + "\n"


def cost_table(costs: Costs, setting: Setting, device: str) -> str:
    """Return the costs per cell; speeds as median and quartiles, and relative to the first cell."""
    lines = [
        f"Images of {setting.image_size} pixels, batch {setting.batch_size}, {device}, median of "
        f"{setting.repeats} rounds taken in turns (quartiles); memory is the temporary memory of "
        "the compiled training step; ratios are taken round by round.",
        "",
        "| cell | params | GMACs | GMACs, authors' count | training MB/image | inference images/s "
        "| times the first | training images/s | times the first |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for cell, cost in costs.items():
        memory = "" if cost["train_mb"] is None else _figure(cost["train_mb"])
        speeds = " | ".join(_speed(cost, kind) for kind in ("infer", "train"))
        lines.append(
            f"| {cell} | {cost['params']:,} | {_figure(cost['gmacs'])} "
            f"| {_figure(cost['gmacs_authors'])} | {memory} | {speeds} |"
        )
    return "\n".join(lines) + "\n"


def _speed(cost: dict[str, Any], kind: str) -> str:
    """Format images/s and the ratio to the first cell; empty if not measured."""
    if kind not in cost:
        return " | "
    low, median, high = map(_rate, cost[kind])
    ratio = cost.get(f"{kind}_ratio")
    return f"{median} ({low} - {high}) | {'' if ratio is None else f'{ratio:.2f}'}"


def _figure(value: float) -> str:
    """Format with two decimals, as published tables do; small values with three digits."""
    return f"{value:.2f}" if value >= 1 else f"{value:.3g}"


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def published_tables(models: dict[str, dict]) -> str:
    """Return the paper's figures of its own cells; empty if there are none.

    Args:
      models: fields of ``create_model`` by cell.
    """
    known = {cell: figures for cell, fields in models.items() if (figures := published(fields))}
    parts = [_radix_table(known)] if known else []
    if set(models) <= set(TRICKS):
        parts.append(_tricks_table(models))
    return "\n".join(parts)


def _radix_table(known: dict[str, Published]) -> str:
    first = next(iter(known.values()))
    lines = [
        "Published, **not measured here**: ImageNet, 224 pixels, one V100 (the paper's table of "
        "radix and cardinality; GMACs of the authors' ablation, for 0s1x64d of timm, by the first "
        "count). Parameters and GMACs can be compared with those above; speed and accuracy "
        "cannot.",
        "",
        "| cell | params | GMACs | top-1 % | inference images/s, V100 | times the first |",
        "|---|---|---|---|---|---|",
    ]
    for cell, p in known.items():
        lines.append(
            f"| {cell} | {p.params:,} | {p.gmacs:.2f} | {p.top1:.2f} | {p.v100} "
            f"| {p.v100 / first.v100:.2f} |"
        )
    return "\n".join(lines) + "\n"


def _tricks_table(cells: Iterable[str]) -> str:
    lines = [
        "Published, **not measured here**: top-1 of 50 layers on ImageNet (the paper's table of "
        "tricks).",
        "",
        "| cell | top-1 % |",
        "|---|---|",
        *(f"| {cell} | {TRICKS[cell]:.2f} |" for cell in cells),
    ]
    return "\n".join(lines) + "\n"
