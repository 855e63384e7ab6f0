"""The ResNeSt of a model: the model itself, or its backbone."""

from typing import Any, TypeVar, cast

import flax.linen as nn

from resnest_jax.models.resnest import ResNeSt

Model = TypeVar("Model", bound=nn.Module)


def backbone_of(model: nn.Module) -> ResNeSt:
    """Return the backbone of a model, or the model if it is a ``ResNeSt``."""
    return model if isinstance(model, ResNeSt) else cast(Any, model).backbone


def clone_backbone(model: Model, **fields: Any) -> Model:
    """Return the model with other fields of its ``ResNeSt``."""
    if isinstance(model, ResNeSt):
        return model.clone(**fields)
    return model.clone(backbone=backbone_of(model).clone(**fields))
