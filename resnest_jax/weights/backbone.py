"""The backbone of a model for another task than classification: initial weights, and its name."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from resnest_jax.errors import InputError
from resnest_jax.models.resnest import ResNeSt
from resnest_jax.models.zoo import MODELS, create_model
from resnest_jax.weights.formats import StateDict
from resnest_jax.weights.pretrained import load_pretrained
from resnest_jax.weights.torch_names import misfits, torch_entries


def load_backbone(
    model: ResNeSt, name: str, path: Path | None, checkpoint: str = "last"
) -> dict[str, Any]:
    """Load ``{"params", "batch_stats"}``, each with the entry ``backbone`` alone.

    Args:
      model: the backbone, without head.
      name: its name.
      path: the source of ``load_pretrained``.
      checkpoint: of a run, ``last``, ``best`` or a step.

    Raises:
      InputError: as ``load_pretrained``.
    """
    names = {field.name for field in dataclasses.fields(model)} - {"parent", "name"}
    fields = {name: getattr(model, name) for name in names}
    _, variables = load_pretrained(name, path, checkpoint=checkpoint, in_channels=3, **fields)
    return as_backbone(variables)


def as_backbone(variables: dict[str, Any]) -> dict[str, Any]:
    """Put the variables of a backbone below its name."""
    return {collection: {"backbone": tree} for collection, tree in variables.items()}


def find_backbone(
    path: Path,
    state_dict: StateDict,
    prefix: str,
    as_classifier: Callable[[StateDict, ResNeSt], StateDict] = lambda entries, _: entries,
) -> str:
    """Return the first model of the zoo whose entries, without the head, a file has.

    Args:
      path: the file, for the error.
      state_dict: its entries.
      prefix: that of the backbone's entries.
      as_classifier: gives entries without the prefix the names of a classifier.

    Raises:
      InputError: if there is none.
    """
    entries = {
        key.removeprefix(prefix): np.asarray(value)
        for key, value in state_dict.items()
        if key.startswith(prefix)
    }
    for name in MODELS:
        model = create_model(name, num_classes=0)
        arrays = as_classifier(entries, model)
        wanted = {entry.key for entry in torch_entries(model) if entry.path is not None}
        if wanted <= arrays.keys() and not misfits(arrays, model):  # the shapes take longer
            return name
    raise InputError(
        f"the backbone of the weights {path} is none of the zoo; one of general form, "
        "resnest{depth}_fast_{R}s{K}x{D}d, is named with --backbone"
    )
