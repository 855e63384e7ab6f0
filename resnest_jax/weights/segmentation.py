"""A segmentation network with what it takes to use it: its classes, and windows of test images."""

from pathlib import Path
from typing import Any, cast

import numpy as np

from resnest_jax.data.label_tables import published_table
from resnest_jax.errors import InputError
from resnest_jax.models.deeplab import SegmentationModel
from resnest_jax.models.zoo import MODELS, create_model
from resnest_jax.weights.card import read_card, read_model
from resnest_jax.weights.formats import StateDict, check_no_checkpoint, read_file
from resnest_jax.weights.network import (
    Network,
    Stored,
    check_described,
    config_of,
    existing,
    read_directory,
)
from resnest_jax.weights.pretrained import check_name
from resnest_jax.weights.published import published_dataset
from resnest_jax.weights.segmenter import BACKBONE, LAST, TORCH_HEADS, count_classes, unwrap
from resnest_jax.weights.torch_names import from_torch, misfits, torch_entries


class Segmenter(Network):
    """A segmentation network and what is known of it, see ``Network``."""

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return count_classes(self.variables)

    @property
    def model(self) -> SegmentationModel:
        """The network."""
        return cast(SegmentationModel, super().model)


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
    path = existing(weights)
    if path.is_dir():
        stored = read_directory(path, "segmentation", name, checkpoint, backbone)
    else:
        stored = _read_file(path, name, checkpoint, backbone)
    return Segmenter(path, *stored).checked()


def _read_file(path: Path, name: str | None, checkpoint: str, backbone: str | None) -> Stored:
    check_no_checkpoint(path, checkpoint)
    description = read_model(path)
    card = read_card(path)
    if description:
        check_described(path, description, "segmentation", name, backbone)
    if dataset := published_dataset(path):
        table = published_table(dataset)
        card = card._replace(class_names=table.names, palette=table.palette)
    state_dict = unwrap(read_file(path))
    description = description or recognise(path, state_dict, backbone)
    check_name(name, path, description)
    variables = from_torch(state_dict, create_model(**description))
    return Stored(config_of("segmentation", description, card), variables, card, None)


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
