"""Export a model with its weights to a file; the suffix names the format."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp

from resnest_jax.data.imagenet import readable
from resnest_jax.errors import InputError, import_package
from resnest_jax.files import check_output, write_atomic, write_json, writing
from resnest_jax.models.backbone import clone_backbone
from resnest_jax.models.inputs import padded
from resnest_jax.weights import stablehlo
from resnest_jax.weights.card import Card
from resnest_jax.weights.classifier import find_source, load_classifier
from resnest_jax.weights.recognition import LOADERS, find_task, refuse_backbone
from resnest_jax.weights.torch_names import Network

STABLEHLO, ONNX = ".stablehlo", ".onnx"


class _Weights(NamedTuple):
    """Weights to export.

    Attributes:
      names: the name of the model as ``model``, of another than a classifier also its ``backbone``.
      card: names and colours of the classes, and crop or sides of test images, as far as known.
      image_size: height and width of the images.
    """

    names: dict[str, str]
    model: Network
    variables: dict[str, Any]
    card: Card
    image_size: tuple[int, int]


def export_file(
    name: str | None,
    weights: str | None,
    output: Path,
    *,
    backbone: str | None = None,
    checkpoint: str = "last",
    image_size: int | tuple[int, int] | None = None,
    platforms: Sequence[str] | None = None,
    dtype: str | None = None,
) -> str:
    """Export a model to a file, with the names of its classes if they are known.

    They are metadata of an .onnx file; beside a .stablehlo file they are in a .json file.

    Args:
      name, weights, checkpoint: as in ``find_source``, or in ``load_weights`` of segmentation or
        detection.
      output: file to write, ending in .stablehlo or .onnx; of a detector .stablehlo.
      backbone: of segmentation and detection, see ``load_weights``.
      image_size: side of the images in pixels, or height and width; None: that of the published
        test, or of the run; of segmentation its ``crop_size``; of detection its short and long
        side, rounded up to multiples of 32: the wide test images fit.
      platforms: those of a .stablehlo file, see ``stablehlo.export``; None is cpu, cuda, tpu.
      dtype: dtype of the activations in a .stablehlo file; None is float32.

    Returns:
      A line about the file.

    Raises:
      InputError: if an argument is out of range, the model cannot be exported, the package
        ``onnx`` is missing or the file cannot be written.
    """
    task = find_task(name, weights)
    _check_output(output, task)
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
    found = _load(task, name, weights, checkpoint, backbone)
    model = clone_backbone(found.model, dtype=jnp.dtype(dtype or "float32"))
    size = found.image_size if image_size is None else _pair(image_size)
    facts = found.card.to_dict() | {"image_size": size[0] if size[0] == size[1] else size}
    if output.suffix == ONNX:
        from resnest_jax.weights import onnx

        content, about = onnx.serialize(model, found.variables, size, found.names | facts)
    else:
        content, about = stablehlo.serialize(model, found.variables, size, platforms or ())
    with writing("output", output):
        write_atomic(output, content)
        if output.suffix == STABLEHLO and "class_names" in facts:
            write_json(output.with_suffix(".json"), facts)
    return f"{output}: {about}; {output.stat().st_size / 1e6:.1f} MB"


def _load(
    task: str, name: str | None, weights: str | None, checkpoint: str, backbone: str | None
) -> _Weights:
    if task == "classification":
        refuse_backbone(backbone)
        return _classifier(name, weights, checkpoint)
    found = LOADERS[task](name, weights, checkpoint, backbone=backbone)
    if task == "segmentation":
        card = Card(found.card.class_names, palette=found.card.palette)
        size = _pair(found.config.crop_size)
    else:
        from resnest_jax.config.detection import eval_sides

        short, longest = eval_sides(found.config)
        card = Card(found.card.class_names, short_side=short, long_side=longest)
        size = padded((short, longest))
    names = {"model": found.description["name"], "backbone": found.description["backbone"]}
    return _Weights(names, found.model, found.variables, card, size)


def _classifier(name: str | None, weights: str | None, checkpoint: str) -> _Weights:
    source = find_source(name, weights, checkpoint)
    model, variables, _ = load_classifier(source)
    names = source.card.class_names
    card = Card(tuple(readable(names)) if names else None, crop=source.card.crop)
    return _Weights({"model": source.name}, model, variables, card, _pair(source.image_size))


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return size if isinstance(size, tuple) else (size, size)


def _check_output(output: Path, task: str) -> None:
    """Raise InputError for what would fail only after minutes."""
    if output.suffix not in (STABLEHLO, ONNX):
        raise InputError(f"output must end in {STABLEHLO} or {ONNX}; got {output}")
    if output.suffix == ONNX and task == "detection":
        raise InputError(f"a detector has no {ONNX}: output must end in {STABLEHLO}; got {output}")
    check_output("output", output)
