"""Weights on disk and on the hub: what was published, and files to and from variables."""

import hashlib
import importlib
import io
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from resnest_jax.errors import InputError
from resnest_jax.files import replace_file
from resnest_jax.models.resnest import MIN_SIZE, ResNeSt
from resnest_jax.models.zoo import create_model
from resnest_jax.weights.torch_names import from_torch, to_torch, torch_entries

StateDict = dict[str, np.ndarray]

HUB_FILE = "model.safetensors"
RELEASE = "https://github.com/zhanghang1989/ResNeSt/releases/download/weights_step1"
HEAD = ("fc.weight", "fc.bias")
SUFFIXES = (".safetensors", ".pth", ".pt")

# A directory that holds weights alone: the model as in a run's config, and the variables.
MODEL_FILE = "model.json"
WEIGHTS_FOLDER = "weights"


class Source(NamedTuple):
    """Where a model's ImageNet weights are: its repository on the hub, the authors' file."""

    hub: str | None = None
    sha256: str | None = None  # the first digits, in the name of the authors' file

    def urls(self, name: str) -> list[str]:
        """Addresses of the files that ``load_pretrained`` takes."""
        hub = [f"https://huggingface.co/{self.hub}/resolve/main/{HUB_FILE}"] if self.hub else []
        return hub + ([f"{RELEASE}/{name}-{self.sha256}.pth"] if self.sha256 else [])


SOURCES: dict[str, Source] = {
    "resnest14": Source("timm/resnest14d.gluon_in1k"),
    "resnest26": Source("timm/resnest26d.gluon_in1k"),
    "resnest50": Source("timm/resnest50d.in1k", "528c19ca"),
    "resnest101": Source("timm/resnest101e.in1k", "22405ba7"),
    "resnest200": Source("timm/resnest200e.in1k", "75117900"),
    "resnest269": Source("timm/resnest269e.in1k", "0cc87c48"),
    "resnest50_fast_1s1x64d": Source(sha256="d8fbf808"),
    "resnest50_fast_2s1x64d": Source(sha256="44938639"),
    "resnest50_fast_4s1x64d": Source(sha256="f74f3fc3"),
    "resnest50_fast_1s2x40d": Source(sha256="32830b84"),
    "resnest50_fast_2s2x40d": Source(sha256="9d126481"),
    "resnest50_fast_4s2x40d": Source("timm/resnest50d_4s2x40d.in1k", "41d14ed0"),
    "resnest50_fast_1s4x24d": Source("timm/resnest50d_1s4x24d.in1k", "d4a4f76f"),
}


def load_pretrained(
    name: str | None,
    source: str | os.PathLike | None = None,
    *,
    in_channels: int | None = None,
    rng: jax.Array | None = None,
    **fields,
) -> tuple[ResNeSt, dict]:
    """A model with trained weights: ``model, {'params', 'batch_stats'}``, float32.

    Two things may differ from the file, and nothing else:

    - With another ``num_classes`` the head is a new one, ``model.init(rng, ...)``'s; 0 has none.
      Left out, it is the file's.
    - With another ``in_channels`` n the RGB kernel K (out, 3, h, w) of the first convolution
      becomes, as in timm, K'[:, c] = 3 / n * K[:, c mod 3]; for n = 1 it becomes the sum over c
      of K[:, c], so that a grey image gives what it gives as RGB.

    Args:
      name: one of ``create_model``; None if the source is a directory, which knows its own.
      source: a .safetensors file, a .pth or .pt file (PyTorch reads it), the workdir of a run
        (its last checkpoint) or a directory written by ``resnest_jax.convert``. None fetches
        the published ImageNet weights from the Hugging Face hub, or finds them in its cache. A
        file named as the authors published it is checked against the hash in its name.
      in_channels: channels of the images; None is as many as the file is for.
      rng: key for a new head; None is ``jax.random.key(0)``.
      **fields: of ``ResNeSt``; for a directory, on top of those it was stored with.

    Raises:
      InputError: if there is no such model or file, the file is broken, an entry is missing,
        unknown or of another shape (all are named), or the weights cannot be fetched: then the
        message says which file to fetch.
    """
    description, state_dict = read_weights(name, _fetch(name) if source is None else source)
    model = create_model(**description | fields)
    if model.norm == "folded":
        raise InputError("model field norm must not be 'folded' here; fold what was loaded")
    replaced = model.num_classes != description["num_classes"]
    if replaced:
        state_dict = {key: value for key, value in state_dict.items() if key not in HEAD}
    if in_channels is not None:
        stem = next(torch_entries(model)).key
        if stem in state_dict:  # else from_torch names it
            state_dict[stem] = _adapt_stem(state_dict[stem], in_channels)
    variables = from_torch(state_dict, model.clone(num_classes=0) if replaced else model)
    if replaced and model.num_classes:
        key = jax.random.key(0) if rng is None else rng
        variables["params"]["head"] = _new_head(model, key)
    return model, variables


def save_weights(variables: Mapping, model: ResNeSt, path: str | os.PathLike) -> int:
    """Write a file that ``load_pretrained``, timm and the authors' code read, whole or not at all.

    Returns the number of its entries.

    Args:
      variables: ``{'params', 'batch_stats'}`` of ``model``.
      model: the model; its entries are all there, in float32, ``num_batches_tracked`` as 0.
      path: ends in .safetensors, or in .pth or .pt (PyTorch writes it).

    Raises:
      InputError: if the variables are not the model's, or the path is of another kind or cannot
        be written.
    """
    path = Path(path).expanduser()
    if path.suffix not in SUFFIXES:
        raise InputError(f"path must end in one of {', '.join(SUFFIXES)}; got {path}")
    state_dict = to_torch(variables, model)
    if path.suffix == ".safetensors":
        safetensors = _import("safetensors.numpy", "safetensors")
        # Without the format, transformers refuses the file.
        content = safetensors.save(state_dict, metadata={"format": "pt"})
    else:
        torch = _import_torch()
        buffer = io.BytesIO()
        torch.save({key: torch.tensor(value) for key, value in state_dict.items()}, buffer)
        content = buffer.getbuffer()
    _check_parent(path)
    try:
        replace_file(path, content)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from error
    return len(state_dict)


def save_directory(description: Mapping[str, Any], variables: Mapping, path: Path) -> None:
    """Write a directory of weights that ``load_pretrained`` reads, in place of any that is there.

    Args:
      description: ``name`` and fields of the model, as a run's config has them.
      variables: ``{'params', 'batch_stats'}``.

    Raises:
      InputError: if the path is something else than such a directory, or cannot be written.
    """
    from resnest_jax.training.checkpoints import save_variables
    from resnest_jax.training.metric_writer import write_json

    if path.exists() and not (path / MODEL_FILE).is_file():
        raise InputError(f"{path} is not a directory of weights; it is left as it is")
    temporary = _temporary(path)
    try:
        shutil.rmtree(temporary, ignore_errors=True)  # of a write that was killed
        temporary.mkdir()
        save_variables(temporary / WEIGHTS_FOLDER, dict(variables))
        write_json(temporary / MODEL_FILE, dict(description))
        if path.exists():
            shutil.rmtree(path)
        os.replace(temporary, path)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise InputError(f"{path} cannot be written: {error.strerror}") from error


def read_weights(name: str | None, source: str | os.PathLike) -> tuple[dict[str, Any], StateDict]:
    """What a source holds: ``name`` and fields of its model, and its torch state dictionary.

    Of a file only ``num_classes`` is known beside the name it is read under. Arguments and errors
    are those of ``load_pretrained``.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return _read_directory(name, path)
    if not path.is_file():
        raise InputError(f"weights {path}: there is no such file or directory")
    if name is None:
        raise InputError(f"model is missing: the name of the model whose weights {path} holds")
    _check_published(name, path)
    if path.suffix == ".safetensors":
        state_dict = _read_safetensors(path)
    elif path.suffix in SUFFIXES:
        state_dict = _read_torch(path)
    else:
        raise InputError(f"weights must end in one of {', '.join(SUFFIXES)}; got weights {path}")
    # As a data-parallel PyTorch model names them.
    state_dict = {key.removeprefix("module."): value for key, value in state_dict.items()}
    return {"name": name, "num_classes": _num_classes(state_dict)}, state_dict


def _fetch(name: str | None) -> Path:
    if name not in SOURCES:
        raise InputError(
            f"no weights are published for {name!r}; there are for {', '.join(SOURCES)}; for "
            "another model pass a file or directory as the source"
        )
    source = SOURCES[name]
    by_hand = f"fetch {' or '.join(source.urls(name))} and pass its path as the source"
    if source.hub is None:
        raise InputError(f"the weights of {name} are not on the hub: {by_hand}")
    huggingface_hub = _import("huggingface_hub", "huggingface_hub")
    try:
        return Path(huggingface_hub.hf_hub_download(source.hub, HUB_FILE))
    except Exception as error:  # the hub's own, its HTTP library's, the cache's
        raise InputError(
            f"the weights of {name} could not be fetched: {by_hand} ({_first_line(error)})"
        ) from error


def _check_published(name: str, path: Path) -> None:
    """Raise InputError unless a file named as published is that model's, and as it was."""
    files = {f"{owner}-{sha256}.pth": (owner, sha256) for owner, (_, sha256) in SOURCES.items()}
    owner, sha256 = files.get(path.name, (None, None))
    if sha256 is None:
        return
    if owner != name:  # which may differ in no shape, only in where they pool
        raise InputError(f"weights {path} are those of {owner}, not of {name}")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not digest.startswith(sha256):
        raise InputError(
            f"weights {path} are not what was published: their sha256 is {digest}, not "
            f"{sha256}... as the name says; fetch the file again"
        )


def _read_safetensors(path: Path) -> StateDict:
    safetensors = _import("safetensors.numpy", "safetensors")
    try:
        return safetensors.load_file(path)
    except Exception as error:  # its own SafetensorError, or of a dtype that NumPy has not
        raise InputError(f"weights {path} are no safetensors: {_first_line(error)}") from error


def _read_torch(path: Path) -> StateDict:
    torch = _import_torch()
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        content = content.get("state_dict", content)
        return {key: value.detach().float().numpy() for key, value in content.items()}
    except Exception as error:  # of a broken file, of one with code inside, of what is no tensor
        raise InputError(
            f"weights {path} are no PyTorch state dictionary, or not of tensors alone: "
            f"{type(error).__name__}"  # PyTorch's message advises to run the code
        ) from error


def describe_directory(path: Path) -> tuple[dict[str, Any], bool]:
    """Name and fields of the model in a directory, and whether that is a run's.

    Raises:
      InputError: if it holds neither a run nor weights.
    """
    from resnest_jax.config import complete, model_fields
    from resnest_jax.workdir import CONFIG

    is_run = not (path / MODEL_FILE).is_file()
    file = path / (CONFIG if is_run else MODEL_FILE)
    try:
        content = json.loads(file.read_text())
        config = content if is_run else {"model": content}
        config["model"]["name"]  # there is a default, but not of weights
        description = model_fields(complete(config))
    except FileNotFoundError:
        raise InputError(
            f"weights {path}: it has neither {CONFIG} of a run nor {MODEL_FILE}"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        problem = error if isinstance(error, InputError) else repr(error)
        raise InputError(f"{file} does not describe a model: {problem}") from error
    return description, is_run


def _read_directory(name: str | None, path: Path) -> tuple[dict[str, Any], StateDict]:
    from resnest_jax.training.checkpoints import latest_folder, restore_variables

    description, is_run = describe_directory(path)
    if name not in (None, description["name"]):
        raise InputError(f"weights {path} are those of {description['name']}, not of {name}")
    folder = latest_folder(path) if is_run else path / WEIGHTS_FOLDER
    variables = restore_variables(folder)
    head = variables["params"].get("head")
    description["num_classes"] = 0 if head is None else len(head["bias"])
    return description, to_torch(variables, create_model(**description))


def _num_classes(state_dict: StateDict) -> int:
    head = next((state_dict[key] for key in HEAD if key in state_dict), None)
    return 0 if head is None else len(np.atleast_1d(head))


def _adapt_stem(kernel: np.ndarray, channels: int) -> np.ndarray:
    """The first kernel, OIHW, for images of so many channels, see ``load_pretrained``."""
    if not isinstance(channels, int) or channels < 1:
        raise InputError(f"in_channels must be a positive integer; got {channels!r}")
    kernel = np.asarray(kernel, np.float32)
    if kernel.ndim != 4 or kernel.shape[1] == channels:
        return kernel
    if kernel.shape[1] != 3:
        raise InputError(f"in_channels must be the file's {kernel.shape[1]}; got {channels}")
    if channels == 1:
        return kernel.sum(1, keepdims=True)
    return kernel[:, np.arange(channels) % 3] * np.float32(3 / channels)


def _new_head(model: ResNeSt, rng: jax.Array) -> dict:
    images = jnp.zeros((1, MIN_SIZE, MIN_SIZE, 3))
    # Under jit nothing but the head is computed.
    return jax.jit(lambda: model.init(rng, images)["params"]["head"])()


def _check_parent(path: Path) -> None:
    if not path.parent.is_dir():
        raise InputError(f"{path} cannot be written: {path.parent} is no directory")


def _temporary(path: Path) -> Path:
    """Where to write what is then moved to the path."""
    _check_parent(path)
    return path.with_name(f".{path.name}.tmp")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _import(module: str, requirement: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise InputError(f"this needs {module}: pip install '{requirement}'") from None


def _import_torch() -> ModuleType:
    return _import("torch", "resnest_jax[torch]")
