"""The directory of a run: its file names and its config."""

import contextlib
import functools
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from ml_collections import ConfigDict

from resnest_jax.config import CHANGEABLE, FREE_SECTIONS, complete, flatten
from resnest_jax.data.sources import PATH_KINDS
from resnest_jax.errors import InputError, one_line
from resnest_jax.files import make_folder, write_json, writing
from resnest_jax.lock import one_writer
from resnest_jax.training.checkpoints import latest_step, stored_config
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
        make_folder("workdir", workdir)
        with writing("workdir", workdir):
            if is_main():
                stack.enter_context(one_writer(workdir))
            check_workdir(workdir, config, free)
        if is_main():
            with writing("workdir", workdir / CONFIG):
                write_json(workdir / CONFIG, complete(config).to_dict())
        yield


def check_workdir(workdir: Path, config: ConfigDict, free: tuple[str, ...] = FREE_SECTIONS) -> None:
    """Refuse a directory with checkpoints of another config.

    If the stored config is lost, this says so, and only the shapes of the checkpoints are compared,
    when they are restored.

    Args:
      free: sections and keys that may differ. A folder of images or its list may be elsewhere.

    Raises:
      InputError: if it has; the message names every key that differs.
    """
    if latest_step(workdir) is None:
        return
    try:
        stored, given = flatten(load_config(workdir)), flatten(complete(config))
    except InputError as error:
        _tell(f"{error}: the given config is used and stored")
        return
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


def holds_run(path: Path) -> bool:
    """Return whether a directory is that of a run, maybe of one that has lost its config."""
    return (path / CONFIG).is_file() or latest_step(path) is not None


def _same_kind_of_path(*datasets: str) -> bool:
    return any(all(name.startswith(kind) for name in datasets) for kind in PATH_KINDS)


def load_config(workdir: Path) -> ConfigDict:
    """Return the completed config of the run in ``workdir``.

    If the file is missing or damaged, this says so and returns the copy in the last checkpoint.

    Raises:
      InputError: if neither is there.
    """
    try:
        return _read_config(workdir / CONFIG)
    except InputError as error:
        if latest_step(workdir) is None:
            raise InputError(
                f"workdir {workdir} holds no run: {error}; restore {workdir / CONFIG} or use "
                "another workdir"
            ) from None
        copy = stored_config(workdir)
        if copy is None:
            raise InputError(
                f"{error}; its checkpoints are of a version that stored no copy: start train with "
                "the --config of the run, which writes it again"
            ) from None
        _tell(f"{error}; the copy in the checkpoints is used")
        return complete(copy)


@functools.cache
def _tell(message: str) -> None:
    """Print a message on stderr, once."""
    print(message, file=sys.stderr, flush=True)


def _read_config(path: Path) -> ConfigDict:
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"there is no {path}") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({one_line(error)})") from None
    wrong = f"{path} must hold the keys of a config; got {repr(values)[:60]}"
    if not isinstance(values, dict):
        raise InputError(wrong)
    try:
        config = complete(values)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    if "model.name" not in flatten(values):  # the default is not the run's
        raise InputError(wrong)
    return config
