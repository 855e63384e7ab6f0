"""Export a model with its weights as ONNX; needs the package ``onnx``."""

import json
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
from onnx import ModelProto

from resnest_jax.models.backbone import clone_backbone
from resnest_jax.models.folding import fold
from resnest_jax.models.inputs import MEAN, STD, check_rgb
from resnest_jax.models.layers.platforms import ONNX
from resnest_jax.weights.onnx_graph import OPSET
from resnest_jax.weights.onnx_translation import convert
from resnest_jax.weights.torch_names import Network


def export(
    model: Network,
    variables: Mapping[str, Any],
    size: tuple[int, int],
    metadata: Mapping[str, Any],
) -> ModelProto:
    """Export the folded model as a function of normalized images (B, 3, H, W), B free.

    The input is ``images``, float32 RGB; the output ``logits``, float32 (B, num_classes), of
    segmentation (B, num_classes, H, W), or ``features`` of a model without head.

    Args:
      variables: ``{"params", "batch_stats"}``; they become part of the file.
      size: H and W.
      metadata: values to store besides ``mean`` and ``std`` (of RGB in 0..255); what is not a
        string is stored as JSON.

    Raises:
      InputError: if the model does not take RGB images, or has an operation without translation.
    """
    check_rgb(variables)
    settings: dict[str, Any] = {"implementation": "auto", "remat": (), "dtype": jnp.float32}
    model = clone_backbone(model, platform=ONNX, **settings)
    folded, variables = fold(model, variables)
    (batch,) = jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *size, 3), jnp.float32)
    mean, std = ([round(float(value), 3) for value in values] for values in (MEAN, STD))
    values = {**metadata, "mean": mean, "std": std}
    return convert(
        partial(folded.apply, variables),
        images,
        ("images", "logits" if model.num_classes else "features"),
        {k: v if isinstance(v, str) else json.dumps(v) for k, v in values.items()},
    )


def serialize(
    model: Network,
    variables: Mapping[str, Any],
    size: tuple[int, int],
    metadata: Mapping[str, Any],
) -> tuple[bytes, str]:
    """Return the content of a file and a line about it; arguments are those of ``export``."""
    exported = export(model, variables, size, metadata)
    graph = exported.graph
    images, logits = (
        ", ".join(str(dim.dim_value) for dim in value.type.tensor_type.shape.dim[1:])
        for value in (*graph.input, *graph.output)
    )
    about = (
        f"normalized float32 images (B, {images}) to logits (B, {logits}), ONNX opset {OPSET}, "
        f"{len(graph.node)} nodes"
    )
    return exported.SerializeToString(), about
