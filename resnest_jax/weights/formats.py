"""Read and write weights: files of safetensors or PyTorch, and directories of weights."""

import json
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from resnest_jax.errors import InputError, import_package, one_line
from resnest_jax.files import write_atomic, write_json, writing
from resnest_jax.models.deeplab import HEADS
from resnest_jax.models.zoo import RCNNS
from resnest_jax.weights.card import Card, safetensors_metadata, write_card
from resnest_jax.weights.torch_files import read_torch, write_torch

StateDict = dict[str, np.ndarray]

SUFFIXES = (".safetensors", ".pth", ".pt")  # of files to write

MAX_HEADER = 100_000_000  # bytes, of safetensors; its length is the first number

# Files that people have in place of weights: how they begin, in lower case, and what to do.
OTHER_FILES = {
    "a Git LFS pointer": ((b"version https://git-lfs",), "run git lfs pull"),
    "a web page": ((b"<!doctype", b"<html", b"<?xml"), "fetch the file itself"),
    "an HDF5 file": ((b"\x89hdf",), "these networks have no weights of Keras"),
    "a gzip archive": ((b"\x1f\x8b",), "unpack it first"),
}

# A directory of weights: the model as in a run's config, and an Orbax checkpoint.
MODEL_FILE = "model.json"
WEIGHTS_FOLDER = "weights"


def read_file(path: Path) -> StateDict:
    """Read the state dictionary in a file of safetensors or of PyTorch, whatever its name.

    Raises:
      InputError: if the file is broken or of another format, which the message names.
    """
    return _read_safetensors(path) if _kind(path) == "safetensors" else read_torch(path)


def write_file(
    path: Path,
    state_dict: StateDict,
    card: Card | None = None,
    description: Mapping[str, Any] | None = None,
) -> None:
    """Write a .safetensors, .pth or .pt file atomically; only the first holds more than numbers.

    Args:
      card: what is known of the weights.
      description: ``name`` and fields of the model.

    Raises:
      InputError: if the path has another suffix or cannot be written.
    """
    check_suffix("path", path)
    if path.suffix.lower() == ".safetensors":
        safetensors = import_package("safetensors.numpy", "safetensors")
        metadata = safetensors_metadata(card or Card(), description or {})
        # Without the format, transformers refuses the file.
        content = safetensors.save(state_dict, metadata={"format": "pt", **metadata})
    else:
        content = write_torch(state_dict)
    with writing("weights", path):
        write_atomic(path, content)


def check_suffix(field: str, path: Path) -> None:
    """Raise InputError if the path does not end like a file of weights."""
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"{field} must end in one of {', '.join(SUFFIXES)}; got {field} {path}")


def describe_directory(path: Path) -> tuple[dict[str, Any], bool]:
    """Return ``name`` and fields of the model in a directory, and whether it holds a run.

    Raises:
      InputError: if it holds neither a run nor weights, or the packages of training are missing.
    """
    try:
        from resnest_jax.config import complete, model_fields
        from resnest_jax.workdir import CONFIG, holds_run, load_config
    except ImportError as error:
        raise InputError(
            f"weights {path}: a directory needs {error.name}: pip install 'resnest_jax[train]'"
        ) from None

    file = path / MODEL_FILE
    if not file.is_file():
        if not holds_run(path):
            raise InputError(f"weights {path}: it has neither {CONFIG} of a run nor {MODEL_FILE}")
        return model_fields(load_config(path)), True
    try:
        content = json.loads(file.read_text())
        content["name"]  # the default name is not that of the weights
        return model_fields(complete({"task": task_of(content), "model": content})), False
    except (ValueError, KeyError, TypeError) as error:
        problem = error if isinstance(error, InputError) else repr(error)
        raise InputError(f"{file} does not describe a model: {problem}") from error


def task_of(description: Mapping[str, Any]) -> str:
    """Return the task of a model, described by its name and fields."""
    name = description.get("name")
    if name in RCNNS:
        return "detection"
    return "segmentation" if name in HEADS else "classification"


def check_classifier(path: Path, description: Mapping[str, Any]) -> None:
    """Raise InputError if weights are of a model on a backbone, as a detector's."""
    if task_of(description) != "classification":
        raise InputError(
            f"weights {path} are of {description['name']}, not of a classifier; they are for "
            "evaluate, predict, convert, export and the pretrained.weights of another such run"
        )


def find_checkpoint(path: Path, which: str) -> int:
    """Return the step of a run's checkpoint: ``last``, ``best`` or a step.

    Errors are those of ``training.checkpoints.find_step``.
    """
    from resnest_jax.config import best_metric
    from resnest_jax.training.checkpoints import find_step
    from resnest_jax.workdir import load_config

    return find_step(path, which, best_metric(load_config(path)))


def read_directory(path: Path, checkpoint: str = "last") -> tuple[dict[str, Any], dict[str, Any]]:
    """Read a checkpoint of a run, or a directory of weights.

    Args:
      checkpoint: of a run, ``last``, ``best`` or a step.

    Returns:
      ``name`` and fields of the model, ``num_classes`` included, and
      ``{"params", "batch_stats"}``.

    Raises:
      InputError: if it holds neither, or no such checkpoint.
    """
    description, is_run = describe_directory(path)
    check_classifier(path, description)
    _, variables = restore_directory(path, is_run, checkpoint)
    head = variables["params"].get("head")
    description["num_classes"] = 0 if head is None else len(head["bias"])
    return description, variables


def restore_directory(
    path: Path, is_run: bool, checkpoint: str = "last"
) -> tuple[int | None, dict[str, Any]]:
    """Return the step, None of weights alone, and the ``{"params", "batch_stats"}``.

    Raises:
      InputError: if there is no such checkpoint.
    """
    from resnest_jax.training.checkpoints import state_folder
    from resnest_jax.training.variables import restore_variables

    if is_run:
        step = find_checkpoint(path, checkpoint)
        return step, restore_variables(state_folder(path, step))
    check_no_checkpoint(path, checkpoint)
    return None, restore_variables(path / WEIGHTS_FOLDER)


def check_no_checkpoint(weights: object, checkpoint: str) -> None:
    """Raise InputError if a checkpoint is named, of weights that are not a run."""
    if checkpoint != "last":
        raise InputError(
            f"checkpoint {checkpoint!r}: only a run has checkpoints; weights {weights} is not one"
        )


def write_directory(
    path: Path,
    description: Mapping[str, Any],
    variables: Mapping[str, Any],
    card: Card | None = None,
) -> None:
    """Write a directory of weights; it replaces an existing one.

    Args:
      path: a directory of weights, or nothing yet.
      description: ``name`` and fields of the model, as in a run's config.
      variables: ``{"params", "batch_stats"}``.
      card: what else is known.

    Raises:
      InputError: if the path is something else or cannot be written.
    """
    from resnest_jax.training.variables import save_variables

    if path.exists() and not (path / MODEL_FILE).is_file():
        raise InputError(f"weights {path}: it is not a directory of weights and is left alone")
    temporary = path.with_name(f".{path.name}.tmp")
    with writing("weights", path):
        try:
            shutil.rmtree(temporary, ignore_errors=True)  # of a write that was killed
            temporary.mkdir()
            save_variables(temporary / WEIGHTS_FOLDER, dict(variables))
            write_json(temporary / MODEL_FILE, dict(description))
            write_card(temporary, card or Card())
            if path.exists():
                shutil.rmtree(path)
            temporary.replace(path)
        except OSError:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def _kind(path: Path) -> str:
    """Return ``torch`` or ``safetensors``, by the content of a file.

    Raises:
      InputError: if it is neither; the message says what it is.
    """
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        raise InputError(f"weights {path} cannot be read: {error.strerror or error}") from error
    text = start.lstrip().lower()
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < MAX_HEADER:
        return "safetensors"
    if start.startswith(b"PK\x03\x04"):
        _check_zip(path)
        return "torch"
    if start.startswith(b"\x80"):  # a pickle, PyTorch's format before 1.6
        return "torch"
    for other, (beginnings, remedy) in OTHER_FILES.items():
        if text.startswith(beginnings):
            raise InputError(f"weights {path} is {other}, not a file of weights: {remedy}")
    if text and path.suffix.lower() in (".pth", ".pt", ".tar"):  # older formats
        return "torch"
    problem = "holds neither safetensors nor a PyTorch checkpoint" if text else "is empty"
    raise InputError(f"weights {path} {problem}; fetch the file again")


def _check_zip(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:
        raise InputError(f"weights {path} is damaged or cut off; fetch the file again") from None
    if not any(name.endswith("data.pkl") for name in names):
        raise InputError(
            f"weights {path} is a zip archive of {', '.join(names[:3]) or 'nothing'}, not a "
            "PyTorch checkpoint; unpack it first"
        )


def _read_safetensors(path: Path) -> StateDict:
    safetensors = import_package("safetensors", "safetensors")
    try:
        with safetensors.safe_open(path, "np") as file:
            dtypes = {file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118
        # NumPy alone has no bfloat16.
        with safetensors.safe_open(path, "flax" if "BF16" in dtypes else "np") as file:
            return {key: np.asarray(file.get_tensor(key)) for key in file.keys()}  # noqa: SIM118
    except Exception as error:  # its own SafetensorError, or a dtype that JAX does not have
        raise InputError(
            f"weights {path} is no whole safetensors file: {one_line(error)}"
        ) from error
