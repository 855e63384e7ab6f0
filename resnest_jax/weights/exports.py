"""Export a model with its weights to a file; the suffix names the format."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from resnest_jax.data.imagenet import readable
from resnest_jax.errors import InputError, import_package
from resnest_jax.files import check_output, write_atomic, write_json, writing
from resnest_jax.weights import stablehlo
from resnest_jax.weights.card import Card
from resnest_jax.weights.classifier import Source, find_source, load_classifier

STABLEHLO, ONNX = ".stablehlo", ".onnx"


def export_file(
    name: str | None,
    weights: str | None,
    output: Path,
    *,
    checkpoint: str = "last",
    image_size: int | None = None,
    platforms: Sequence[str] | None = None,
    dtype: str | None = None,
) -> str:
    """Export a model to a file, with the names of its classes if they are known.

    They are metadata of an .onnx file; beside a .stablehlo file they are in a .json file.

    Args:
      name, weights, checkpoint: as in ``find_source``.
      output: file to write, ending in .stablehlo or .onnx.
      image_size: side of the images in pixels; None: that of the published test, or of the run.
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
    else:
        platforms = stablehlo.DEFAULT if platforms is None else platforms
        stablehlo.check_platforms(platforms)
    source = find_source(name, weights, checkpoint)
    size = source.image_size if image_size is None else image_size
    facts = _facts(source, size)
    if output.suffix == ONNX:
        from resnest_jax.weights import onnx

        model, variables, _ = load_classifier(source)
        content, about = onnx.serialize(model, variables, size, {"model": source.name, **facts})
    else:
        model, variables, _ = load_classifier(source, dtype=jnp.dtype(dtype or "float32"))
        content, about = stablehlo.serialize(model, variables, size, platforms or ())
    with writing("output", output):
        write_atomic(output, content)
        if output.suffix == STABLEHLO and "class_names" in facts:
            write_json(output.with_suffix(".json"), facts)
    return f"{output}: {about}; {output.stat().st_size / 1e6:.1f} MB"


def _facts(source: Source, image_size: int) -> dict[str, Any]:
    """Return class names to read, size and crop of the images, as far as they are known."""
    names = source.card.class_names
    card = Card(tuple(readable(names)) if names else None, image_size, source.card.crop)
    return card.to_dict()


def _check_output(output: Path) -> None:
    """Raise InputError for what would fail only after minutes."""
    if output.suffix not in (STABLEHLO, ONNX):
        raise InputError(f"output must end in {STABLEHLO} or {ONNX}; got {output}")
    check_output("output", output)
