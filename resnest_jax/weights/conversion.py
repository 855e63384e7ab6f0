"""Convert weights between files and directories."""

from pathlib import Path

import jax

from resnest_jax.data.imagenet import synsets
from resnest_jax.errors import InputError
from resnest_jax.models.zoo import create_model
from resnest_jax.weights.classifier import find_source
from resnest_jax.weights.formats import SUFFIXES, write_directory, write_file
from resnest_jax.weights.pretrained import read_weights
from resnest_jax.weights.torch_names import from_torch, to_torch


def convert(
    name: str | None,
    weights: str,
    output: Path,
    *,
    checkpoint: str = "last",
    class_names: str | None = None,
    overwrite: bool = False,
) -> str:
    """Write weights to a file or directory, with what is known of them.

    Args:
      name, weights, checkpoint: as in ``find_source``.
      output: a .safetensors, .pth or .pt file, or a path without suffix: a directory of weights.
        .pth and .pt hold the numbers alone.
      class_names: ``imagenet``, or a text file with a name per line; None: those that the weights
        have.
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
    source = find_source(name, weights, checkpoint)
    description, state_dict = read_weights(source.name, source.path, source.checkpoint)
    card = source.card
    if class_names:
        card = card._replace(class_names=_read_names(class_names, description["num_classes"]))
    model = create_model(**description)
    variables = from_torch(state_dict, model)
    if output.suffix:
        state_dict = to_torch(variables, model)
        write_file(output, state_dict, card)
        entries = len(state_dict)
    else:
        write_directory(output, description, variables, card)
        entries = len(jax.tree.leaves(variables))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    return f"{output}: {description['name']}, {entries} entries, {parameters:,} parameters"


def _read_names(value: str, num_classes: int) -> tuple[str, ...]:
    if value == "imagenet":
        names = synsets()
    else:
        try:
            names = tuple(Path(value).expanduser().read_text(encoding="utf-8").splitlines())
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"class_names must be imagenet, or a text file with a name per line; got {value}: "
                f"{error}"
            ) from None
    if len(names) != num_classes:
        raise InputError(
            f"class_names {value} has {len(names)} names, but the weights have {num_classes} "
            "classes"
        )
    return names
