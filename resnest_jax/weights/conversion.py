"""Convert weights between files and directories."""

from pathlib import Path
from typing import Any, NamedTuple

import jax

from resnest_jax.data.coco import coco_classes
from resnest_jax.data.imagenet import synsets
from resnest_jax.data.label_tables import published_names, published_table
from resnest_jax.errors import InputError
from resnest_jax.models.zoo import create_model
from resnest_jax.weights.card import Card
from resnest_jax.weights.classifier import find_source
from resnest_jax.weights.formats import SUFFIXES, write_directory, write_file
from resnest_jax.weights.pretrained import read_weights
from resnest_jax.weights.recognition import LOADERS, find_task, refuse_backbone
from resnest_jax.weights.torch_names import Network, from_torch, to_torch

NAMES = {"imagenet": synsets, "coco": coco_classes}  # of classes without label maps


class _Weights(NamedTuple):
    """Weights to write.

    Attributes:
      about: the model in words.
      description: its name and fields.
    """

    about: str
    description: dict[str, Any]
    model: Network
    variables: dict[str, Any]
    card: Card


def convert(
    name: str | None,
    weights: str,
    output: Path,
    *,
    backbone: str | None = None,
    checkpoint: str = "last",
    class_names: str | None = None,
    overwrite: bool = False,
) -> str:
    """Write weights to a file or directory, with what is known of them.

    Args:
      name, weights, checkpoint: as in ``find_source``, or in ``load_weights`` of segmentation or
        detection.
      output: a .safetensors, .pth or .pt file, or a path without suffix: a directory of weights.
        .pth and .pt hold the numbers alone.
      backbone: of segmentation and detection, see ``load_weights``.
      class_names: ``imagenet``, ``coco``, a key of ``label_tables.json``, or a text file with a
        name per line; None: those that the weights have.
      overwrite: replace an existing output.

    Returns:
      A line about the output.

    Raises:
      InputError: if the source does not hold the model, or the output has another suffix, exists
        or cannot be written.
    """
    if output.suffix.lower() not in (*SUFFIXES, ""):
        raise InputError(
            f"output must end in one of {', '.join(SUFFIXES)}, or have no suffix: a directory; "
            f"got {output}"
        )
    if output.exists() and not overwrite:
        raise InputError(f"output {output} exists; pass --overwrite to replace it")
    about, description, model, variables, card = _load(name, weights, checkpoint, backbone)
    if class_names:
        card = _named(card, class_names, description["num_classes"])
    if output.suffix:
        state_dict = to_torch(variables, model)
        write_file(output, state_dict, card, description)
        entries = len(state_dict)
    else:
        write_directory(output, description, variables, card)
        entries = len(jax.tree.leaves(variables))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    return f"{output}: {about}, {entries} entries, {parameters:,} parameters"


def _load(name: str | None, weights: str, checkpoint: str, backbone: str | None) -> _Weights:
    task = find_task(name, weights)
    if task == "classification":
        refuse_backbone(backbone)
        return _classifier(name, weights, checkpoint)
    found = LOADERS[task](name, weights, checkpoint, backbone=backbone)
    return _Weights(found.about, found.description, found.model, found.variables, found.full_card)


def _classifier(name: str | None, weights: str, checkpoint: str) -> _Weights:
    source = find_source(name, weights, checkpoint)
    description, state_dict = read_weights(source.name, source.path, source.checkpoint)
    model = create_model(**description)
    variables = from_torch(state_dict, model)
    return _Weights(description["name"], description, model, variables, source.card)


def _named(card: Card, value: str, num_classes: int) -> Card:
    """Return the card with other names of classes, and colours if they are known."""
    palette = card.palette
    if value in NAMES:
        names = NAMES[value]()
    elif value in published_names():
        names, palette = published_table(value).names, published_table(value).palette
    else:
        try:
            names = tuple(Path(value).expanduser().read_text(encoding="utf-8").splitlines())
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"class_names must be {', '.join((*NAMES, *published_names()))}, or a text file "
                f"with a name per line; got {value}: {error}"
            ) from None
    if len(names) != num_classes:
        raise InputError(
            f"class_names {value} has {len(names)} names, but the weights have {num_classes} "
            "classes"
        )
    return card._replace(class_names=names, palette=palette)
