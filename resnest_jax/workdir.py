"""The directory of a run: its file names and its config."""

import json
from pathlib import Path

from ml_collections import ConfigDict

from resnest_jax.config import FREE_SECTIONS, complete, flatten
from resnest_jax.errors import InputError
from resnest_jax.files import write_json, writing
from resnest_jax.training.checkpoints import latest_step
from resnest_jax.training.distributed import is_main

CONFIG = "config.json"
PARAMETERS = "parameters.txt"
SUMMARY = "summary.json"


def claim_workdir(workdir: Path, config: ConfigDict) -> None:
    """Create the directory and write the completed config into it.

    Raises:
      InputError: if the directory cannot be written, or holds checkpoints of another config.
    """
    with writing("workdir", workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        check_workdir(workdir, config)
        if is_main():
            write_json(workdir / CONFIG, complete(config).to_dict())


def check_workdir(workdir: Path, config: ConfigDict) -> None:
    """Check that the directory has no checkpoints of another config; ``FREE_SECTIONS`` may differ.

    Raises:
      InputError: if it has; the message names every key that differs.
    """
    if latest_step(workdir) is None:
        return
    stored, given = flatten(load_config(workdir)), flatten(complete(config))
    changed = [
        f"{key}: stored {stored.get(key)!r}, given {given.get(key)!r}"
        for key in sorted(stored | given)
        if stored.get(key) != given.get(key) and key.split(".")[0] not in FREE_SECTIONS
    ]
    if changed:
        raise InputError(
            f"workdir {workdir} holds a run of another config: {'; '.join(changed)}; "
            "use another workdir or the same config"
        )


def load_config(workdir: Path) -> ConfigDict:
    """Return the completed config of the run in ``workdir``.

    Raises:
      InputError: if it is missing or not a config.
    """
    path = workdir / CONFIG
    if not path.is_file():
        raise InputError(f"workdir {workdir} holds no run: there is no {path}")
    remedy = f"restore {path} or use another workdir"
    try:
        values = json.loads(path.read_text())
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; {remedy}") from None
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}); {remedy}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path} must hold the keys of a config; got {values!r}; {remedy}")
    try:
        return complete(values)
    except InputError as error:
        raise InputError(f"{path}: {error}; {remedy}") from None
