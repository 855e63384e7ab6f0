"""The directory of a run: its file names and its config."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

from ml_collections import ConfigDict

from resnest_jax.config import CHANGEABLE, FREE_SECTIONS, complete, flatten
from resnest_jax.errors import InputError
from resnest_jax.files import write_json, writing
from resnest_jax.lock import one_writer
from resnest_jax.training.checkpoints import latest_step
from resnest_jax.training.distributed import is_main

CONFIG = "config.json"
PARAMETERS = "parameters.txt"
SUMMARY = "summary.json"


@contextlib.contextmanager
def claim_workdir(
    workdir: Path, config: ConfigDict, free: tuple[str, ...] = FREE_SECTIONS
) -> Iterator[None]:
    """Create the directory and write the completed config into it; be its only writer in the block.

    Raises:
      InputError: if the directory cannot be written, holds checkpoints of another config, or has
        another writer.
    """
    with contextlib.ExitStack() as stack:
        with writing("workdir", workdir):
            workdir.mkdir(parents=True, exist_ok=True)
            if is_main():
                stack.enter_context(one_writer(workdir))
            check_workdir(workdir, config, free)
            if is_main():
                write_json(workdir / CONFIG, complete(config).to_dict())
        yield


def check_workdir(workdir: Path, config: ConfigDict, free: tuple[str, ...] = FREE_SECTIONS) -> None:
    """Refuse a directory with checkpoints of another config.

    Args:
      free: sections and keys that may differ. A folder of images or its list may be elsewhere.

    Raises:
      InputError: if it has; the message names every key that differs.
    """
    if latest_step(workdir) is None:
        return
    stored, given = flatten(load_config(workdir)), flatten(complete(config))
    changed = [
        f"{key}: stored {stored.get(key)!r}, given {given.get(key)!r}"
        for key in sorted(stored | given)
        if stored.get(key) != given.get(key) and key.split(".")[0] not in free
    ]
    folders = str(stored.get("dataset")), str(given.get("dataset"))
    if folders[0] != folders[1] and _same_kind_of_path(*folders):
        changed = [text for text in changed if not text.startswith("dataset:")]
        print(f"dataset: {folders[1]}, before {folders[0]}: it must hold the same images")
    if changed:
        raise InputError(
            f"workdir {workdir} holds a run of another config: {'; '.join(changed)}; "
            "use another workdir or the same config, or go back to a checkpoint with --from_step, "
            f"where {', '.join(CHANGEABLE)} may change"
        )


def _same_kind_of_path(*datasets: str) -> bool:
    return any(all(name.startswith(kind) for name in datasets) for kind in ("folder:", "csv:"))


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
