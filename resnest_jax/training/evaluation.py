"""Evaluate a model in one pass over the evaluation images."""

from collections.abc import Callable

import jax
from jax.sharding import Mesh

from resnest_jax.compiling import compiler_options
from resnest_jax.training.distributed import is_main, local, sum_over_processes
from resnest_jax.training.mesh import batch_sharding, platform_of, replicated, shard
from resnest_jax.training.run import Run
from resnest_jax.training.state import TrainState
from resnest_jax.training.task import (
    EvalBatches,
    EvalOutput,
    Evaluator,
    HostBatch,
    Metric,
    Variables,
)


def make_evaluate(run: Run) -> Callable[[TrainState], dict[str, float]]:
    """Make ``evaluate(state)``, which returns the values of the task's metric as ``eval_...``."""
    evaluate = make_evaluate_variables(run.task, run.batches, run.mesh)
    return lambda state: evaluate(state.variables)


def make_evaluate_variables(
    task: Evaluator, batches: EvalBatches, mesh: Mesh
) -> Callable[[Variables], dict[str, float]]:
    """Make ``evaluate(variables)``, as ``make_evaluate`` does, without a run."""
    shardings = EvalOutput._make((replicated(mesh), batch_sharding(mesh)))
    options = compiler_options(platform_of(mesh))
    eval_step = jax.jit(task.eval_step, out_shardings=shardings, compiler_options=options)

    def evaluate(variables: Variables) -> dict[str, float]:
        # A moving average may be sharded over the devices.
        variables = jax.device_put(variables, replicated(mesh))
        return evaluate_batches(
            lambda batch: eval_step(variables, shard(batch, mesh)), task.metric(), batches
        )

    return evaluate


def evaluate_batches(
    eval_step: Callable[[HostBatch], EvalOutput], metric: Metric, batches: EvalBatches
) -> dict[str, float]:
    """Return the values of a metric of all batches as ``eval_...``.

    Args:
      eval_step: from this process's part of a batch to its global output.
    """

    def read(output: EvalOutput, batch: HostBatch) -> None:
        metric.update(EvalOutput(jax.device_get(output.sums), local(output.per_image)), batch)

    pending, seen = None, 0
    for batch in batches.eval():
        seen += int(batch["valid"].sum())
        output = eval_step(batch)
        if pending:
            read(*pending)  # one batch late, to keep the device busy
        pending = output, batch
    if pending:
        read(*pending)
    figures = {f"eval_{name}": value for name, value in metric.compute().items()}
    return figures | _report_missing(sum_over_processes(seen), batches.num_eval)


def _report_missing(seen: int, expected: int) -> dict[str, float]:
    """Say and note down how many images the figures are of, if not of all."""
    if seen == expected:
        return {}
    if is_main():
        print(f"evaluated {seen} of {expected} images: the others are unreadable", flush=True)
    return {"eval_images": float(seen)}


class Sums:
    """Metric of means: every sum divided by the sum named ``count``."""

    def __init__(self):
        self._sums: dict[str, float] = {}

    def update(self, output: EvalOutput, batch: HostBatch) -> None:
        """Add the sums of a batch."""
        del batch
        for name, value in output.sums.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(value)

    def compute(self) -> dict[str, float]:
        """Return the means."""
        count = self._sums["count"]
        return {name: value / count for name, value in self._sums.items() if name != "count"}
