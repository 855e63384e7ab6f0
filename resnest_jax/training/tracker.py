"""Trackers of experiments that get the metrics too: Weights & Biases."""

import importlib
import secrets
from pathlib import Path
from typing import Any, Protocol

from resnest_jax.errors import InputError, one_line
from resnest_jax.files import write_atomic

TRACKERS = ("none", "wandb")
RUN_ID = "wandb_id.txt"


class Tracker(Protocol):
    """An open run of a tracker, with the methods of ``wandb.Run``."""

    def log(self, data: dict[str, Any]) -> None: ...

    def finish(self, exit_code: int) -> None: ...


def check_tracker(name: str) -> None:
    """Raise InputError if the tracker is unknown or not installed."""
    if name not in TRACKERS:
        raise InputError(f"tracker must be one of {TRACKERS}; got {name!r}")
    if name == "wandb":
        _import_wandb()


def open_wandb(workdir: Path, config: dict[str, Any]) -> Tracker:
    """Open the run of a workdir in Weights & Biases; the same one when the run is resumed.

    Project, account and mode are wandb's own settings: ``WANDB_PROJECT``, ``WANDB_MODE``.

    Raises:
      InputError: if wandb is not installed or does not start.
    """
    wandb = _import_wandb()
    file = workdir / RUN_ID
    if not file.exists():
        write_atomic(file, secrets.token_hex(4).encode())
    try:
        run = wandb.init(
            id=file.read_text(),
            resume="allow",
            name=workdir.resolve().name,
            dir=str(workdir),
            config=config,
            allow_val_change=True,  # the number of workers, for example
        )
    except Exception as error:  # wandb raises many kinds
        raise InputError(
            f"tracker 'wandb' does not start: {one_line(error)}; run `wandb login`, or set "
            "WANDB_MODE=offline"
        ) from error
    # Not wandb's own steps, which never go back: a run that resumes from a checkpoint does.
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    return run


def _import_wandb() -> Any:
    try:
        return importlib.import_module("wandb")
    except ImportError:
        raise InputError("tracker 'wandb' needs wandb: pip install 'resnest_jax[wandb]'") from None
