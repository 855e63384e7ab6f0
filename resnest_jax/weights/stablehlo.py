"""Export a model with its weights as StableHLO."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.export
import jax.numpy as jnp

from resnest_jax.errors import InputError
from resnest_jax.models.folding import fold
from resnest_jax.models.inputs import check_rgb, normalize
from resnest_jax.models.layers.platforms import PLATFORMS
from resnest_jax.models.resnest import ResNeSt

DEFAULT = ("cpu", "cuda", "tpu")  # platforms


def export(
    model: ResNeSt, variables: Mapping[str, Any], image_size: int, platforms: Sequence[str]
) -> jax.export.Exported:
    """Export the folded model as a function of uint8 images (B, S, S, 3), B symbolic.

    Args:
      variables: ``{"params", "batch_stats"}``; they become part of the artefact.
      image_size: S.
      platforms: platforms that the artefact runs on, see ``PLATFORMS``.

    Raises:
      InputError: if the model does not take RGB images.
    """
    check_rgb(variables)
    # Operations for other platforms also run on CPU, but slower; those for CPU are slow elsewhere.
    platform = next((name for name in platforms if name != "cpu"), "cpu")
    model = model.clone(platform=platform)
    if platform != "cpu":
        model = model.clone(implementation="auto")  # a run's own may suit only the CPU
    folded, variables = fold(model, variables)

    @jax.jit
    def classify(images: jax.Array) -> Any:
        return folded.apply(variables, normalize(images))

    (batch,) = jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, image_size, image_size, 3), jnp.uint8)
    return jax.export.export(classify, platforms=platforms)(images)


def serialize(
    model: ResNeSt, variables: Mapping[str, Any], image_size: int, platforms: Sequence[str]
) -> tuple[bytearray, str]:
    """Return the content of a file and a line about it; arguments are those of ``export``."""
    exported = export(model, variables, image_size, platforms)
    about = (
        f"uint8 images (B, {image_size}, {image_size}, 3) to logits "
        f"(B, {exported.out_avals[0].shape[1]}), for {', '.join(exported.platforms)}"
    )
    return exported.serialize(), about


def check_platforms(platforms: Sequence[str]) -> None:
    """Raise InputError if a platform is unknown, or there is none."""
    if not platforms or not set(platforms) <= set(PLATFORMS):
        raise InputError(
            f"platforms must be some of {','.join(PLATFORMS)}; got {','.join(platforms)}"
        )
