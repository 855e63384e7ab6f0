"""Export a model with its weights to a file; the suffix names the format."""

import os
from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp

from resnest_jax.errors import InputError
from resnest_jax.files import write_atomic, writing
from resnest_jax.weights import stablehlo
from resnest_jax.weights.formats import import_package
from resnest_jax.weights.pretrained import load_pretrained

STABLEHLO, ONNX = ".stablehlo", ".onnx"


def export_file(
    name: str,
    weights: str,
    output: Path,
    *,
    image_size: int,
    platforms: Sequence[str] | None = None,
    dtype: str | None = None,
) -> str:
    """Export a model to a file.

    Args:
      name, weights: as in ``load_pretrained``.
      output: file to write, ending in .stablehlo or .onnx.
      image_size: side of the images in pixels.
      platforms: those of a .stablehlo file, see ``stablehlo.export``; None is cpu, cuda, tpu.
      dtype: dtype of the activations in a .stablehlo file; None is float32.

    Returns:
      A line about the file.

    Raises:
      InputError: if an argument is out of range, the model cannot be exported, the package
        ``onnx`` is missing or the file cannot be written.
    """
    _check_output(output)
    if output.suffix == ONNX:
        for field, value in {"platforms": platforms, "dtype": dtype}.items():
            if value is not None:
                raise InputError(
                    f"{field} is for {STABLEHLO} files only; got {field} {value} for {output}"
                )
        import_package("onnx", "resnest_jax[onnx]")
        from resnest_jax.weights import onnx

        model, variables = load_pretrained(name, weights)
        content, about = onnx.serialize(model, variables, image_size, name)
    else:
        platforms = stablehlo.DEFAULT if platforms is None else platforms
        stablehlo.check_platforms(platforms)
        model, variables = load_pretrained(name, weights, dtype=jnp.dtype(dtype or "float32"))
        content, about = stablehlo.serialize(model, variables, image_size, platforms)
    with writing("output", output):
        write_atomic(output, content)
    return f"{output}: {about}; {output.stat().st_size / 1e6:.1f} MB"


def _check_output(output: Path) -> None:
    """Raise InputError for what would fail only after minutes."""
    if output.suffix not in (STABLEHLO, ONNX):
        raise InputError(f"output must end in {STABLEHLO} or {ONNX}; got {output}")
    if output.is_dir() or not os.access(output.parent, os.W_OK | os.X_OK):
        raise InputError(f"output {output} cannot be written; its directory must be writable")
