"""Count, compile and time the models of a sweep."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.ablation.jobs import brief, provenance
from experiments.benchmark.ours import infer_program, training_step
from experiments.timing import random_variables, time_calls
from resnest_jax import create_model
from resnest_jax.files import write_json
from resnest_jax.models.costs import count_macs, count_parameters
from resnest_jax.models.resnest import ResNeSt

COSTS = "costs.json"


class Setting(NamedTuple):
    """Side of the images, batch size and rounds of the timing."""

    image_size: int
    batch_size: int
    repeats: int


def measure(
    models: dict[str, dict], setting: Setting, path: Path
) -> tuple[dict[str, dict[str, Any]], str]:
    """Measure the costs of each cell and store them in ``path``; reuse those of the same models.

    Stored costs may come from another machine, for example from one with an accelerator for a
    sweep on a cluster.

    Args:
      models: fields of ``create_model`` by cell; cells with the same model share their costs.

    Returns:
      By cell: ``params``, ``gmacs`` (fvcore's convention), ``gmacs_authors``, ``train_mb``
      (temporary memory of the compiled training step, 1e6 bytes per image), ``infer`` and
      ``train`` (images/s: lower quartile, median, upper quartile), ``infer_ratio`` and
      ``train_ratio`` (relative to the first cell, median of the rounds). Speeds that cannot be
      measured are missing. Second, the device of the measurement.
    """
    asked = json.loads(json.dumps({"setting": setting._asdict(), "models": models}))
    if path.exists():
        stored = json.loads(path.read_text())
        if stored["asked"] == asked:
            return stored["costs"], stored["device"]
    distinct: dict[str, str] = {}  # fields of a model -> the first cell with them
    first = {
        cell: distinct.setdefault(json.dumps(fields, sort_keys=True), cell)
        for cell, fields in models.items()
    }
    measured = _measure({cell: create_model(**models[cell]) for cell in distinct.values()}, setting)
    costs = {cell: measured[first[cell]] for cell in models}
    made_by = provenance()
    write_json(path, {"asked": asked, **made_by, "costs": costs})
    return costs, made_by["device"]


def _measure(models: dict[str, ResNeSt], setting: Setting) -> dict[str, dict[str, Any]]:
    shape = (setting.batch_size, setting.image_size, setting.image_size, 3)
    images = jax.random.normal(jax.random.key(0), shape)
    calls, costs = {}, {}
    for cell, model in models.items():
        print(f"costs: compiling {cell} for images {shape}", flush=True)
        costs[cell] = {
            "params": count_parameters(model),
            "gmacs": count_macs(model, setting.image_size) / 1e9,
            "gmacs_authors": count_macs(model, setting.image_size, convention="authors") / 1e9,
            "train_mb": None,
        }
        try:
            infer = infer_program(model.apply, random_variables(model, images), images)
            train = training_step(model, images)
            infer.call(), train.call()
        except jax.errors.JaxRuntimeError as error:  # most likely out of memory
            print(f"costs: {cell} is not timed: {brief(error)}", flush=True)
            continue
        calls |= {f"{cell} infer": infer.call, f"{cell} train": train.call}
        if memory := train.temporary_mib:
            costs[cell]["train_mb"] = memory * 2**20 / 1e6 / setting.batch_size
    # In turns, so that other load on the machine affects all of them.
    seconds = time_calls(calls, setting.repeats)
    first = next(iter(models))
    for name, times in seconds.items():
        cell, _, kind = name.rpartition(" ")
        rates = setting.batch_size / np.array(times)
        costs[cell][kind] = [round(float(q), 3) for q in np.quantile(rates, (0.25, 0.5, 0.75))]
        if f"{first} {kind}" in seconds:
            # Per round, so that changes from round to round cancel.
            ratios = np.array(seconds[f"{first} {kind}"]) / np.array(times)
            costs[cell][f"{kind}_ratio"] = round(float(np.median(ratios)), 3)
    return costs
