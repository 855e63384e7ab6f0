"""Load models with trained weights, and save weights."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from resnest_jax.errors import InputError
from resnest_jax.files import local_path
from resnest_jax.models.resnest import MIN_SIZE, ResNeSt
from resnest_jax.models.zoo import create_model
from resnest_jax.weights.card import Card, read_model
from resnest_jax.weights.formats import (
    StateDict,
    check_classifier,
    check_no_checkpoint,
    check_suffix,
    read_directory,
    read_file,
    write_file,
)
from resnest_jax.weights.published import check_published, fetch
from resnest_jax.weights.torch_names import from_torch, strip_prefix, to_torch, torch_entries

HEAD = ("fc.weight", "fc.bias")


def load_pretrained(
    name: str | None,
    source: str | os.PathLike | None = None,
    *,
    checkpoint: str = "last",
    in_channels: int | None = None,
    rng: jax.Array | None = None,
    **fields: Any,
) -> tuple[ResNeSt, dict]:
    """Load a model with trained weights: ``model, {"params", "batch_stats"}``, float32.

    Two things may differ from the file:

    - ``num_classes``: another number gives a new head, as from ``model.init(rng, ...)``; 0 gives
      no head. The default is the number of the file.
    - ``in_channels``: n channels turn the RGB kernel K (out, 3, h, w) of the first convolution,
      as in timm, into K'[:, c] = 3 / n * K[:, c mod 3]. For n = 1 it becomes the sum of K[:, c]
      over c, so that a grey image has the logits of the same image in RGB.

    Args:
      name: name for ``create_model``; None if the source holds it, as a directory does, and a
        .safetensors file that ``resnest_jax.convert`` wrote.
      source: a file of safetensors or PyTorch (needs it) of any name, the workdir of a run or a
        directory that ``resnest_jax.convert`` wrote. None downloads the published ImageNet weights
        from the Hugging Face hub, or finds them in its cache. A file named as the authors published
        it is checked against the hash in its name. Training checkpoints of PyTorch are read without
        running code, see ``torch_files.PLACES``; prefixes of the names, such as ``module.`` or
        ``model.``, are removed.
      checkpoint: of a run, ``last``, ``best`` or a step.
      in_channels: channels of the images; None is the number of the file.
      rng: key for a new head; None is ``jax.random.key(0)``.
      **fields: fields of ``ResNeSt``; they override those that the source holds.

    Raises:
      InputError: if the model or file does not exist, the file is broken, entries are missing,
        unknown or of another shape (the first are named), values are integers, NaN or infinite, or
        the weights cannot be fetched (the message says which file to fetch by hand).
    """
    description, state_dict = read_weights(
        name, fetch(name) if source is None else source, checkpoint
    )
    model = create_model(**description | fields)
    if model.norm == "folded":
        raise InputError("model field norm must not be 'folded' here; fold the loaded model")
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


def save_weights(
    variables: Mapping[str, Any],
    model: ResNeSt,
    path: str | os.PathLike,
    *,
    class_names: Sequence[str] | None = None,
) -> int:
    """Write a file that ``load_pretrained``, timm and the authors' code read, atomically.

    Args:
      variables: ``{"params", "batch_stats"}`` of ``model``.
      model: the model; all its entries are written in float32, ``num_batches_tracked`` as 0.
      path: file that ends in .safetensors, or in .pth or .pt (needs PyTorch).
      class_names: the name of each logit; only .safetensors holds them.

    Returns:
      The number of entries.

    Raises:
      InputError: if the variables do not fit the model, or the path has another suffix or cannot
        be written.
    """
    path = Path(path).expanduser()
    check_suffix("path", path)  # before the work
    state_dict = to_torch(variables, model)
    write_file(path, state_dict, Card(tuple(class_names)) if class_names else None)
    return len(state_dict)


def read_weights(
    name: str | None, source: str | os.PathLike, checkpoint: str = "last"
) -> tuple[dict[str, Any], StateDict]:
    """Read ``name`` and fields of the model in a source, and its torch state dictionary.

    A file that does not describe its model gives only ``num_classes``. Arguments and errors are
    those of ``load_pretrained``.
    """
    path = local_path("weights", source)
    if path.is_dir():
        description, variables = read_directory(path, checkpoint)
        check_name(name, path, description)
        return description, to_torch(variables, create_model(**description))
    if not path.is_file():
        raise InputError(f"weights {path}: there is no {path.absolute()}")
    check_no_checkpoint(path, checkpoint)
    description = describe_file(name, path)
    check_published(description["name"], path)
    state_dict = strip_prefix(read_file(path))
    return description | {"num_classes": _num_classes(state_dict)}, state_dict


def describe_file(name: str | None, path: Path) -> dict[str, Any]:
    """Return ``name`` and known fields of the classifier in a file, which may describe it.

    Raises:
      InputError: if nothing names it, or if it is another model.
    """
    description = read_model(path)
    check_classifier(path, description)
    check_name(name, path, description)
    if name is None and not description:
        raise InputError(f"model is missing: the name of the model whose weights {path} holds")
    return {"name": name} | description


def check_name(name: str | None, path: Path, description: Mapping[str, Any]) -> None:
    """Raise InputError if weights that describe their model are of another one than the named."""
    if name not in (None, description.get("name", name)):
        raise InputError(f"weights {path} are those of {description['name']}, not of {name}")


def _num_classes(state_dict: StateDict) -> int:
    head = next((state_dict[key] for key in HEAD if key in state_dict), None)
    return 0 if head is None else len(np.atleast_1d(head))


def _adapt_stem(kernel: np.ndarray, channels: int) -> np.ndarray:
    """Adapt the first kernel, OIHW, to a number of channels, see ``load_pretrained``."""
    if not isinstance(channels, int | np.integer) or channels < 1:
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
