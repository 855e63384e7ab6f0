"""The error of a step that is not finite: its records, and what is known of the cause."""

import contextlib
from pathlib import Path

import jax
import numpy as np

from resnest_jax.errors import DivergenceError
from resnest_jax.files import write_json
from resnest_jax.training.checkpoints import Checkpoints
from resnest_jax.training.run import Run


def make_error(
    run: Run,
    checkpoints: Checkpoints,
    workdir: Path,
    start_step: int,
    step: int,
    bad: dict[str, float],
) -> DivergenceError:
    """Make the error of a step; list its records in a file of the workdir.

    Args:
      start_step: step from which the run was resumed, or 0.
      bad: the values that are not finite, by name.
    """
    path = workdir / f"divergence_{jax.process_index()}.json"
    keys = run.batches.train_keys(step - 1)
    write_json(path, {"step": step, "records": keys})
    found = ", ".join(f"{name} is {value}" for name, value in bad.items())
    return DivergenceError(
        f"step {step}: {found}; its {len(keys)} records ({', '.join(keys[:2])}, ...) are listed in "
        f"{path}; {_cause_in_batch(run, step) or _remedy(checkpoints, start_step, step)}"
    )


def _cause_in_batch(run: Run, step: int) -> str:
    """Return what to do if the batch itself is not finite, else an empty text."""
    with contextlib.closing(run.batches.train(step - 1)) as stream:
        batch = next(stream)
    bad = [name for name, array in batch.items() if not np.isfinite(array).all()]
    if not bad:
        return ""
    return f"{', '.join(bad)} of this batch is not finite: mend the data, then start again"


def _remedy(checkpoints: Checkpoints, start_step: int, step: int) -> str:
    """Return what to do, by the steps that came before and the checkpoints that are there."""
    if step == 1:
        return (
            "the weights had not been updated yet, so the learning rate is not the cause: look at "
            "these records and at the weights that the run starts from"
        )
    stored = checkpoints.steps()
    at_once = step == start_step + 1
    earlier = [s for s in stored if s < (start_step if at_once else step)]
    if earlier:
        back = f"go back with --from_step=STEP (there are {', '.join(map(str, earlier))})"
    else:
        back = "start in another workdir" if stored else "start again"
    back += " and, for example, a lower --config.optimizer.base_learning_rate"
    if at_once:
        return f"the checkpoint of step {step - 1} may have diverged already: {back}"
    return f"look at these records, or {back}"
