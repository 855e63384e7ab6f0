"""Train a run from its config."""

from pathlib import Path

import jax
from clu import parameter_overview
from ml_collections import ConfigDict

from resnest_jax import recipe
from resnest_jax.config import CHANGEABLE, FREE_SECTIONS, complete
from resnest_jax.errors import StorageError
from resnest_jax.files import write_json
from resnest_jax.training.checkpoints import GONE, Checkpoints, check_step, latest_step
from resnest_jax.training.curves import plot_curves
from resnest_jax.training.distributed import is_main
from resnest_jax.training.loop import fit
from resnest_jax.training.run import Run
from resnest_jax.training.state import abstract_state
from resnest_jax.training.tracker import check_tracker
from resnest_jax.weights.card import Card, check_class_names, write_card
from resnest_jax.workdir import PARAMETERS, SUMMARY, claim_workdir


def train(config: ConfigDict, workdir: Path, from_step: int | None = None) -> dict:
    """Train the run of a config in ``workdir``, or resume it from its last checkpoint.

    Writes ``config.json``, ``classes.json``, ``parameters.txt``, ``metrics.jsonl``, TensorBoard
    events, ``checkpoints/``, ``curves.png`` and ``summary.json``. Returns the summary in the main
    process, an empty one in others.

    Args:
      from_step: go back to the checkpoint of this step; the sections and keys of
        ``config.CHANGEABLE`` may then have other values. Later checkpoints and the metrics so far
        are kept under other names.

    Raises:
      InputError: if the config, the data set or the directory cannot be used.
      DivergenceError: if a loss or gradient is not finite; the last checkpoint is kept.
      PreemptedError: after SIGTERM, with the current step finished and saved.
      StorageError: if the disk is full; the last complete checkpoint is kept.
    """
    config = complete(config)
    if from_step is not None:
        check_step(workdir, from_step)  # before the config is written
    check_tracker(config.tracker)
    run = recipe.build(config, workdir)
    check_classes(run, workdir)
    abstract_state(run)  # raises what does not fit the model before anything is written
    free = FREE_SECTIONS if from_step is None else FREE_SECTIONS + CHANGEABLE
    with claim_workdir(workdir, config, free):
        try:
            return _train(run, config, workdir, from_step)
        except OSError as error:
            if not workdir.is_dir():
                raise StorageError(GONE.format(workdir)) from error
            raise StorageError(
                f"the run in {workdir} stopped: {error}; fix this and run the same command again"
            ) from error


def check_classes(run: Run, workdir: Path) -> None:
    """Raise InputError if the run in ``workdir`` was trained on other classes."""
    if latest_step(workdir) is not None:
        check_class_names(workdir, run.batches.class_names)


def _train(run: Run, config: ConfigDict, workdir: Path, from_step: int | None) -> dict:
    with open_checkpoints(run, config, workdir) as checkpoints:
        if from_step is not None:
            checkpoints.go_back(from_step)
        if is_main():
            _describe(run, config, workdir)
        summary = fit(run, checkpoints, workdir)
    if is_main():
        summary = {"model": config.model.name, **summary}
        plot_curves(workdir, run)
        write_json(workdir / SUMMARY, summary)
    return summary


def _describe(run: Run, config: ConfigDict, workdir: Path) -> None:
    """Write the class names and the table of parameters; print a summary of the run."""
    write_card(workdir, Card(run.batches.class_names, palette=run.palette))
    (workdir / PARAMETERS).write_text(parameter_table(run) + "\n")
    for note in run.notes:
        print(note)
    print(
        f"{config.model.name} on {config.dataset}: {run.batches.num_train} training images, "
        f"{run.batches.num_eval} evaluation images; {run.options.total_steps} steps of "
        f"{config.batch_size} images on {jax.device_count()} {jax.default_backend()} device(s) in "
        f"{jax.process_count()} process(es)",
        flush=True,
    )


def parameter_table(run: Run) -> str:
    """Return a table of the name, shape and size of every parameter."""
    params = run.abstract_variables["params"]
    return parameter_overview.get_parameter_overview(params, include_stats=False)


def open_checkpoints(run: Run, config: ConfigDict, workdir: Path) -> Checkpoints:
    """Open the checkpoints of a run, for a ``with`` block."""
    return Checkpoints(
        workdir,
        best_metric=run.task.best_metric,
        keep_last=config.checkpoint.keep_last,
        config=config.to_dict(),
    )
