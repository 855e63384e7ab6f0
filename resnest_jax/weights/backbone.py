"""Initial weights of the backbone of a model for another task than classification."""

import dataclasses
from pathlib import Path
from typing import Any

from resnest_jax.models.resnest import ResNeSt
from resnest_jax.weights.pretrained import load_pretrained


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
