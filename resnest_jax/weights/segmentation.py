"""A segmentation network with what it takes to use it: its classes, and windows of test images."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from resnest_jax.data.label_tables import published_table
from resnest_jax.errors import InputError
from resnest_jax.files import local_path
from resnest_jax.models.deeplab import HEADS, SegmentationModel
from resnest_jax.models.zoo import MODELS, create_model
from resnest_jax.weights.card import Card, read_card, read_model
from resnest_jax.weights.formats import (
    StateDict,
    check_no_checkpoint,
    describe_directory,
    is_segmentation,
    read_file,
    restore_directory,
)
from resnest_jax.weights.pretrained import check_name
from resnest_jax.weights.published import published_dataset
from resnest_jax.weights.segmenter import BACKBONE, LAST, TORCH_HEADS, count_classes, unwrap
from resnest_jax.weights.torch_names import from_torch, misfits, torch_entries

if TYPE_CHECKING:  # importing the models needs no configs
    from ml_collections import ConfigDict


class Segmenter(NamedTuple):
    """A segmentation network and what is known of it.

    Attributes:
      path: file or directory of its weights.
      config: of the run; of other weights the defaults, with what the weights say.
      variables: ``{"params", "batch_stats"}``.
      card: names and colours of the classes, as far as they are known.
      step: of a run that of the checkpoint; else None.
    """

    path: Path
    config: "ConfigDict"
    variables: dict[str, Any]
    card: Card
    step: int | None = None

    @property
    def description(self) -> dict[str, Any]:
        """Name and fields of the model, ``num_classes`` included."""
        from resnest_jax.config import model_fields

        return model_fields(self.config) | {"num_classes": count_classes(self.variables)}

    @property
    def model(self) -> SegmentationModel:
        """The network."""
        return cast(SegmentationModel, create_model(**self.description))

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes; of unknown ones numbers."""
        numbers = range(self.description["num_classes"])
        return self.card.class_names or tuple(f"class {number}" for number in numbers)

    @property
    def about(self) -> str:
        """The model in words."""
        fields = self.description
        text = f"{fields['name']} on {fields['backbone']}, {fields['num_classes']} classes"
        return f"{text}, auxiliary head" if fields["auxiliary"] else text


def holds_segmenter(name: str | None, weights: str | None) -> bool:
    """Return whether a command is given a segmentation model, by its name or by its weights."""
    if name is not None:
        return name in HEADS
    path = None if weights is None else local_path("weights", weights)
    if path is None or not path.exists():
        return False
    if path.is_dir():
        return is_segmentation(describe_directory(path)[0])
    if description := read_model(path):
        return is_segmentation(description)
    return any(BACKBONE in key for key in read_file(path))


def load_weights(
    name: str | None,
    weights: str | None,
    checkpoint: str = "last",
    *,
    backbone: str | None = None,
) -> Segmenter:
    """Load a segmentation model.

    Args:
      name: ``deeplabv3`` or ``fcn``; None: what the weights say.
      weights: the directory of a run or of weights, or a file of the authors' entries: a state
        dictionary or a training checkpoint. Whether it is of DeepLabV3 or FCN, its classes, its
        auxiliary head and, if it is of the zoo, its backbone are seen from the entries.
      checkpoint: of a run, ``last``, ``best`` or a step.
      backbone: name of the backbone; None: what the weights say.

    Raises:
      InputError: if the weights do not exist, are damaged, are of another model, or if the backbone
        is not of the zoo and not given.
    """
    if weights is None or weights == "published":
        raise InputError(
            f"weights of {name} cannot be fetched: give the file, such as "
            "--weights=deeplab_resnest50_ade-2225f09d.pth"
        )
    path = local_path("weights", weights)
    if not path.exists():
        raise InputError(f"weights {path}: no such file or directory")
    segmenter = (_read_directory if path.is_dir() else _read_file)(path, name, checkpoint, backbone)
    names = segmenter.card.class_names
    count = segmenter.description["num_classes"]
    if names is not None and len(names) != count:
        raise InputError(
            f"weights {path} have {count} classes, but {len(names)} names of classes are stored "
            "with them"
        )
    return segmenter


def _read_directory(
    path: Path, name: str | None, checkpoint: str, backbone: str | None
) -> Segmenter:
    from resnest_jax.workdir import load_config

    description, is_run = describe_directory(path)
    _check_described(path, description, name, backbone)
    step, variables = restore_directory(path, is_run, checkpoint)
    card = read_card(path)
    config = load_config(path) if is_run else _config(description, card)
    return Segmenter(path, config, variables, card, step)


def _read_file(path: Path, name: str | None, checkpoint: str, backbone: str | None) -> Segmenter:
    check_no_checkpoint(path, checkpoint)
    description = read_model(path)
    card = read_card(path)
    if description:
        _check_described(path, description, name, backbone)
    if dataset := published_dataset(path):
        table = published_table(dataset)
        card = card._replace(class_names=table.names, palette=table.palette)
    state_dict = unwrap(read_file(path))
    description = description or recognise(path, state_dict, backbone)
    check_name(name, path, description)
    variables = from_torch(state_dict, create_model(**description))
    return Segmenter(path, _config(description, card), variables, card)


def _check_described(
    path: Path, description: dict[str, Any], name: str | None, backbone: str | None
) -> None:
    """Raise InputError if weights that describe their model are of another one."""
    check_name(name, path, description)
    if not is_segmentation(description):
        raise InputError(f"weights {path} are of {description['name']}, not of segmentation")
    if backbone not in (None, description["backbone"]):
        raise InputError(
            f"weights {path} have the backbone {description['backbone']}, not {backbone}"
        )


def _config(description: dict[str, Any], card: Card) -> "ConfigDict":
    """Return the config of weights without a run."""
    from resnest_jax.config import complete

    known = {
        "crop_size": card.image_size,
        "augment.base_size": card.base_size,
        "evaluation.scales": card.scales,
    }
    given = {key: value for key, value in known.items() if value is not None}
    return complete({"task": "segmentation", "model": description, **given})


def recognise(path: Path, state_dict: StateDict, backbone: str | None = None) -> dict[str, Any]:
    """Return name and fields of the model of the authors' entries.

    Backbones with the same entries, as resnest50 and resnest50_fast_2s1x64d, cannot be told apart:
    the first of the zoo is taken unless one is given.

    Raises:
      InputError: if they are of no segmentation model, or of no backbone of the zoo.
    """
    heads = [name for name, last in LAST.items() if last in state_dict]
    if not heads:
        raise InputError(
            f"weights {path} are not of segmentation under the authors' names: there is no "
            f"{' or '.join(LAST.values())}"
        )
    return {
        "name": heads[0],
        "backbone": backbone or _find_backbone(path, state_dict),
        "num_classes": len(np.atleast_1d(state_dict[LAST[heads[0]]])),
        "auxiliary": any(key.startswith(TORCH_HEADS["auxiliary"]) for key in state_dict),
    }


def _find_backbone(path: Path, state_dict: StateDict) -> str:
    arrays = {
        key.removeprefix(BACKBONE): np.asarray(value)
        for key, value in state_dict.items()
        if key.startswith(BACKBONE)
    }
    for name in MODELS:
        model = create_model(name, num_classes=0)
        wanted = {entry.key for entry in torch_entries(model) if entry.path is not None}
        if wanted <= arrays.keys() and not misfits(arrays, model):  # the shapes take longer
            return name
    raise InputError(
        f"the backbone of the weights {path} is none of the zoo; one of general form, "
        "resnest{depth}_fast_{R}s{K}x{D}d, is named with --backbone"
    )
