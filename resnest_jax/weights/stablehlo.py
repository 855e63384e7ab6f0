"""Export a model with its weights as StableHLO."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import jax
import jax.export
import jax.numpy as jnp

from resnest_jax.errors import InputError
from resnest_jax.models.backbone import clone_backbone
from resnest_jax.models.detection.detections import Detections, Instances
from resnest_jax.models.detection.rcnn import RCNN
from resnest_jax.models.folding import fold
from resnest_jax.models.inputs import check_rgb, normalize, normalize_padded
from resnest_jax.models.layers.platforms import PLATFORMS
from resnest_jax.weights.torch_names import Network

DEFAULT = ("cpu", "cuda", "tpu")  # platforms


def export(
    model: Network,
    variables: Mapping[str, Any],
    size: tuple[int, int],
    platforms: Sequence[str],
) -> jax.export.Exported:
    """Export the folded model as a function of uint8 images (B, H, W, 3), B symbolic.

    That of a detector also takes their ``sizes``, int32 (B, 2), and returns a tuple; see ``detect``
    of the model.

    Args:
      variables: ``{"params", "batch_stats"}``; they become part of the artefact.
      size: H and W.
      platforms: platforms that the artefact runs on, see ``PLATFORMS``.

    Raises:
      InputError: if the model does not take RGB images.
    """
    check_rgb(variables)
    # Operations for other platforms also run on CPU, but slower; those for CPU are slow elsewhere.
    platform = next((name for name in platforms if name != "cpu"), "cpu")
    model = clone_backbone(model, platform=platform)
    if platform != "cpu":
        model = clone_backbone(model, implementation="auto")  # a run's own may suit only the CPU
    folded, variables = fold(model, variables)

    def apply(images: jax.Array) -> Any:
        return folded.apply(variables, normalize(images))

    def detect(images: jax.Array, sizes: jax.Array) -> tuple[jax.Array, ...]:
        inputs = normalize_padded(images, sizes)
        found = cast(tuple, folded.apply(variables, inputs, sizes, method="detect"))
        return tuple(found)  # a reader does not know the class

    (batch,) = jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *size, 3), jnp.uint8)
    if isinstance(model, RCNN):
        sizes = jax.ShapeDtypeStruct((batch, 2), jnp.int32)
        return jax.export.export(jax.jit(detect), platforms=platforms)(images, sizes)
    return jax.export.export(jax.jit(apply), platforms=platforms)(images)


def serialize(
    model: Network,
    variables: Mapping[str, Any],
    size: tuple[int, int],
    platforms: Sequence[str],
) -> tuple[bytearray, str]:
    """Return the content of a file and a line about it; arguments are those of ``export``."""
    exported = export(model, variables, size, platforms)
    inputs, outputs = ("uint8 images",), ("logits",)
    if isinstance(model, RCNN):
        inputs = ("uint8 images", "int32 sizes")
        outputs = (Instances if model.mask_convolutions else Detections)._fields
    named = zip((*inputs, *outputs), (*exported.in_avals, *exported.out_avals), strict=True)
    texts = [f"{name} (B, {', '.join(map(str, array.shape[1:]))})" for name, array in named]
    taken, given = ", ".join(texts[: len(inputs)]), ", ".join(texts[len(inputs) :])
    return exported.serialize(), f"{taken} to {given}, for {', '.join(exported.platforms)}"


def check_platforms(platforms: Sequence[str]) -> None:
    """Raise InputError if a platform is unknown, or there is none."""
    if not platforms or not set(platforms) <= set(PLATFORMS):
        raise InputError(
            f"platforms must be some of {','.join(PLATFORMS)}; got {','.join(platforms)}"
        )
