"""Fold batch norms into the convolutions before them: the same function, for inference."""

from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from resnest_jax.errors import InputError
from resnest_jax.models.backbone import backbone_of, clone_backbone
from resnest_jax.models.deeplab import SegmentationModel
from resnest_jax.models.detection.rcnn import RCNN
from resnest_jax.models.layers import winograd
from resnest_jax.models.layers.normalization import BatchNorm
from resnest_jax.models.layers.platforms import on_cpu
from resnest_jax.models.resnest import ResNeSt

# bnX follows convX; in an attention unit bn0 follows conv, and bn1 follows the dense fc1.
OTHER_CONVOLUTIONS = {"bn0": "conv", "bn1": "fc1"}

Path = tuple[str, ...]
Model = TypeVar("Model", bound=ResNeSt | SegmentationModel | RCNN)


def fold(model: Model, variables: Mapping) -> tuple[Model, dict]:
    """Fold every batch norm of a model and its variables: equal logits, inference only.

    The factor of a batch norm per channel, ``scale / sqrt(var + epsilon)``, moves into the kernel
    before it; its offset stays, as a bias.

    Args:
      model: a model whose field ``norm`` is not ``"folded"``.
      variables: its ``{"params", "batch_stats"}``.

    Returns:
      The model with ``norm="folded"``, and ``{"params"}`` for it, float32 (computed in float64).
      With implementation ``"auto"`` and for CPU, see ``platform``, wide 3x3 kernels are stored
      transformed by ``layers.winograd``, in place of ``kernel``.

    Raises:
      InputError: if the model is already folded, or a batch norm does not have one convolution.
    """
    backbone = backbone_of(model)
    scope = () if backbone is model else ("backbone",)
    if backbone.norm == "folded":
        raise InputError("model field norm is already 'folded'; fold a 'batch' or 'frozen' model")
    params: dict[Path, Any]
    params, stats = (
        {path: np.asarray(leaf, np.float64) for path, leaf in flatten_dict(variables[name]).items()}
        for name in ("params", "batch_stats")
    )
    for norm in [path[:-1] for path in stats if path[-1] == "mean"]:
        conv = _convolution_before(norm, params)
        factor = params.pop((*norm, "scale")) / np.sqrt(stats[*norm, "var"] + BatchNorm.epsilon)
        params[*conv, "kernel"] = params[*conv, "kernel"] * factor  # output channels come last
        if (*conv, "bias") in params:
            params[*conv, "bias"] = params[*conv, "bias"] * factor
        params[*norm, "bias"] = params[*norm, "bias"] - stats[*norm, "mean"] * factor
    precise = jnp.dtype(backbone.dtype) == jnp.float32
    if backbone.implementation == "auto" and precise and on_cpu(backbone.platform):
        for conv, groups in winograd_convolutions(backbone):
            kernels = np.split(params.pop((*scope, *conv, "kernel")), groups, -1)
            params[*scope, *conv, "winograd"] = [winograd.transform_kernel(k) for k in kernels]
    params = {
        path: jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), leaf)
        for path, leaf in params.items()
    }
    return clone_backbone(model, norm="folded"), {"params": unflatten_dict(params)}


def _convolution_before(norm: Path, params: Mapping[Path, np.ndarray]) -> Path:
    """Return the path of the convolution that a batch norm follows, by their names."""
    *scope, name = norm
    names = [name.replace("bn", "conv"), OTHER_CONVOLUTIONS.get(name)]
    found = [(*scope, other) for other in names if (*scope, other, "kernel") in params]
    if len(found) != 1:
        raise InputError(
            f"batch norm {'/'.join(norm)} follows {len(found)} convolutions; expected one in the "
            f"same module, named {' or '.join(filter(None, names))}"
        )
    return found[0]


def winograd_convolutions(model: ResNeSt) -> list[tuple[Path, int]]:
    """Return path and groups of the convolutions for which Winograd is fastest on CPU."""
    found = []
    for block, settings in model.block_settings():
        groups = settings["radix"] * settings["cardinality"]
        strides = 1 if settings["avd"] else settings["strides"]
        if groups and settings["width"] // groups >= 64 and strides == settings["dilation"] == 1:
            found.append(((block, "conv2", "conv"), groups))
    return found
