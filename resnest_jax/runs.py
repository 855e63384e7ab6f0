"""Runs on disk: train one from its config, evaluate what it stored."""

from pathlib import Path

import jax
from clu import parameter_overview
from ml_collections import ConfigDict

from resnest_jax import recipe
from resnest_jax.training.checkpoints import Checkpoints, latest_folder
from resnest_jax.training.curves import plot_curves
from resnest_jax.training.loop import fit, initial_state, make_evaluate
from resnest_jax.training.metrics import write_json


def train(config: ConfigDict, workdir: Path) -> dict:
    """Train what the config describes in ``workdir``, from its last checkpoint if it has one.

    Leaves ``config.json``, ``parameters.txt``, ``metrics.jsonl``, TensorBoard events,
    ``checkpoints/``, ``curves.png`` and ``summary.json``, whose content it returns.

    Raises:
      InputError: if the config, the data set or the directory is not usable.
      DivergenceError: if loss or gradient turn non-finite; the last checkpoint is kept.
    """
    run = recipe.build(config)
    recipe.claim_workdir(workdir, config)
    variables = jax.eval_shape(run.task.init, jax.random.key(0))
    overview = parameter_overview.get_parameter_overview(variables["params"], include_stats=False)
    (workdir / "parameters.txt").write_text(overview + "\n")
    print(
        f"{config.model.name} on {config.dataset}: {run.batches.num_train} images to train on, "
        f"{run.batches.num_eval} to evaluate; {run.plan.total_steps} steps of "
        f"{config.batch_size} on {jax.device_count()} {jax.default_backend()} device(s)",
        flush=True,
    )
    with _checkpoints(run, config, workdir) as checkpoints:
        summary = fit(
            run.task,
            run.batches,
            run.optimizer,
            run.schedule,
            run.plan,
            checkpoints,
            workdir,
            config.seed,
        )
    summary = {"model": config.model.name, **summary}
    plot_curves(workdir)
    write_json(workdir / "summary.json", summary)
    return summary


def evaluate(workdir: Path, checkpoint: str = "last") -> dict:
    """Accuracy of a stored checkpoint: ``last``, ``best`` or a step.

    Raises:
      InputError: if there is no run or no such checkpoint in ``workdir``.
    """
    config = recipe.load_config(workdir)
    run = recipe.build(config)
    latest_folder(workdir)  # there must be one
    with _checkpoints(run, config, workdir) as checkpoints:
        state = initial_state(run.task, run.optimizer, config.seed)
        state, _ = checkpoints.restore(state, checkpoint)
    results = make_evaluate(run.task, run.batches)(state)
    return {"model": config.model.name, "step": int(state.step), **results}


def _checkpoints(run: recipe.Run, config: ConfigDict, workdir: Path) -> Checkpoints:
    return Checkpoints(workdir, best_metric=run.task.best_metric, **config.checkpoint)
