"""Read and write weights: .safetensors, .pth, and directories of weights."""

import io
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from resnest_jax.errors import InputError, import_package, one_line
from resnest_jax.files import write_atomic, write_json, writing

StateDict = dict[str, np.ndarray]

SUFFIXES = (".safetensors", ".pth", ".pt")

# A directory of weights: the model as in a run's config, and an Orbax checkpoint.
MODEL_FILE = "model.json"
WEIGHTS_FOLDER = "weights"


def read_file(path: Path) -> StateDict:
    """Read the state dictionary in a .safetensors, .pth or .pt file.

    Raises:
      InputError: if the file is broken or of another format.
    """
    check_suffix("weights", path)
    state_dict = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    # A data-parallel PyTorch model adds the prefix.
    return {key.removeprefix("module."): value for key, value in state_dict.items()}


def write_file(path: Path, state_dict: StateDict) -> None:
    """Write a .safetensors, .pth or .pt file atomically.

    Raises:
      InputError: if the path has another suffix or cannot be written.
    """
    check_suffix("path", path)
    if path.suffix == ".safetensors":
        safetensors = import_package("safetensors.numpy", "safetensors")
        # Without the format, transformers refuses the file.
        content = safetensors.save(state_dict, metadata={"format": "pt"})
    else:
        torch = _import_torch()
        buffer = io.BytesIO()
        torch.save({key: torch.tensor(value) for key, value in state_dict.items()}, buffer)
        content = buffer.getbuffer()
    with writing("weights", path):
        write_atomic(path, content)


def check_suffix(field: str, path: Path) -> None:
    """Raise InputError if the path does not end like a file of weights."""
    if path.suffix not in SUFFIXES:
        raise InputError(f"{field} must end in one of {', '.join(SUFFIXES)}; got {field} {path}")


def describe_directory(path: Path) -> tuple[dict[str, Any], bool]:
    """Return ``name`` and fields of the model in a directory, and whether it holds a run.

    Raises:
      InputError: if it holds neither a run nor weights, or the packages of training are missing.
    """
    try:
        from resnest_jax.config import complete, model_fields
        from resnest_jax.workdir import CONFIG
    except ImportError as error:
        raise InputError(
            f"weights {path}: a directory needs {error.name}: pip install 'resnest_jax[train]'"
        ) from None

    is_run = not (path / MODEL_FILE).is_file()
    file = path / (CONFIG if is_run else MODEL_FILE)
    try:
        content = json.loads(file.read_text())
        config = content if is_run else {"model": content}
        config["model"]["name"]  # the default name is not that of the weights
        description = model_fields(complete(config))
    except FileNotFoundError:
        raise InputError(
            f"weights {path}: it has neither {CONFIG} of a run nor {MODEL_FILE}"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        problem = error if isinstance(error, InputError) else repr(error)
        raise InputError(f"{file} does not describe a model: {problem}") from error
    return description, is_run


def read_directory(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read the last checkpoint of a run, or a directory of weights.

    Returns:
      ``name`` and fields of the model, ``num_classes`` included, and
      ``{"params", "batch_stats"}``.

    Raises:
      InputError: if it holds neither, or no checkpoint.
    """
    description, is_run = describe_directory(path)
    from resnest_jax.training.checkpoints import latest_folder, restore_variables

    variables = restore_variables(latest_folder(path) if is_run else path / WEIGHTS_FOLDER)
    head = variables["params"].get("head")
    description["num_classes"] = 0 if head is None else len(head["bias"])
    return description, variables


def write_directory(
    path: Path, description: Mapping[str, Any], variables: Mapping[str, Any]
) -> None:
    """Write a directory of weights; it replaces an existing one.

    Args:
      path: a directory of weights, or nothing yet.
      description: ``name`` and fields of the model, as in a run's config.
      variables: ``{"params", "batch_stats"}``.

    Raises:
      InputError: if the path is something else or cannot be written.
    """
    from resnest_jax.training.checkpoints import save_variables

    if path.exists() and not (path / MODEL_FILE).is_file():
        raise InputError(f"weights {path}: it is not a directory of weights and is left alone")
    temporary = path.with_name(f".{path.name}.tmp")
    with writing("weights", path):
        try:
            shutil.rmtree(temporary, ignore_errors=True)  # of a write that was killed
            temporary.mkdir()
            save_variables(temporary / WEIGHTS_FOLDER, dict(variables))
            write_json(temporary / MODEL_FILE, dict(description))
            if path.exists():
                shutil.rmtree(path)
            temporary.replace(path)
        except OSError:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def _read_safetensors(path: Path) -> StateDict:
    safetensors = import_package("safetensors.numpy", "safetensors")
    try:
        return safetensors.load_file(path)
    except Exception as error:  # its own SafetensorError, or a dtype that NumPy does not have
        raise InputError(f"weights {path} is not a safetensors file: {one_line(error)}") from error


def _read_torch(path: Path) -> StateDict:
    torch = _import_torch()
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        content = content.get("state_dict", content)
        return {key: value.detach().float().numpy() for key, value in content.items()}
    except Exception as error:  # a broken file, one with code inside, values that are not tensors
        raise InputError(
            f"weights {path} is not a state dictionary of tensors: "
            f"{type(error).__name__}"  # PyTorch's message advises to run the code
        ) from error


def _import_torch() -> ModuleType:
    return import_package("torch", "resnest_jax[torch]")
