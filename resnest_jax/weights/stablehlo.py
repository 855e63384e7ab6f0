"""Export a model with its weights as StableHLO."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp

from resnest_jax.errors import InputError
from resnest_jax.files import write_atomic, writing
from resnest_jax.models.folding import fold
from resnest_jax.models.inputs import normalize
from resnest_jax.models.layers.platforms import PLATFORMS
from resnest_jax.models.resnest import ResNeSt
from resnest_jax.weights.pretrained import load_pretrained

SUFFIX = ".stablehlo"


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
    channels = variables["params"]["stem"]["conv1"]["kernel"].shape[2]
    if channels != 3:
        raise InputError(
            f"only models of RGB images can be exported; the model takes {channels} channels"
        )
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


def export_file(
    name: str,
    weights: str,
    output: Path,
    *,
    image_size: int,
    platforms: Sequence[str],
    dtype: str = "float32",
) -> str:
    """Export a model to a file.

    Args:
      name, weights: as in ``load_pretrained``.
      output: file to write, ending in .stablehlo.
      image_size, platforms: see ``export``.
      dtype: dtype of activations.

    Returns:
      A line about the file.

    Raises:
      InputError: if an argument is out of range or the file cannot be written.
    """
    _check(output, platforms)
    model, variables = load_pretrained(name, weights, dtype=jnp.dtype(dtype))
    exported = export(model, variables, image_size, platforms)
    with writing("output", output):
        write_atomic(output, exported.serialize())
    return (
        f"{output}: uint8 images (B, {image_size}, {image_size}, 3) to logits "
        f"(B, {exported.out_avals[0].shape[1]}), for {', '.join(exported.platforms)}; "
        f"{output.stat().st_size / 1e6:.1f} MB"
    )


def _check(output: Path, platforms: Sequence[str]) -> None:
    """Raise InputError for what would fail only after minutes."""
    if output.suffix != SUFFIX:
        raise InputError(f"output must end in {SUFFIX}; got {output}")
    if output.is_dir() or not os.access(output.parent, os.W_OK | os.X_OK):
        raise InputError(f"output {output} cannot be written; its directory must be writable")
    if not platforms or not set(platforms) <= set(PLATFORMS):
        raise InputError(
            f"platforms must be some of {','.join(PLATFORMS)}; got {','.join(platforms)}"
        )
