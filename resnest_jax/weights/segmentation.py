"""A segmentation network with what it takes to use it: its classes, and windows of test images."""

from pathlib import Path
from typing import Any, cast

import numpy as np

from resnest_jax.data.label_tables import published_table
from resnest_jax.errors import InputError
from resnest_jax.models.deeplab import SegmentationModel
from resnest_jax.weights.backbone import find_backbone
from resnest_jax.weights.card import Card, read_card
from resnest_jax.weights.formats import StateDict
from resnest_jax.weights.network import Authors, Network, read_stored
from resnest_jax.weights.published import published_dataset
from resnest_jax.weights.segmenter import BACKBONE, LAST, TORCH_HEADS, count_classes, unwrap


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
    return Segmenter(*read_stored(AUTHORS, name, weights, checkpoint, backbone)).checked()


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
        "backbone": backbone or find_backbone(path, state_dict, BACKBONE),
        "num_classes": len(np.atleast_1d(state_dict[LAST[heads[0]]])),
        "auxiliary": any(key.startswith(TORCH_HEADS["auxiliary"]) for key in state_dict),
    }


def _card(path: Path) -> Card:
    """Return the card of a file; a published one has the classes of its data set."""
    card = read_card(path)
    if dataset := published_dataset(path):
        table = published_table(dataset)
        return card._replace(class_names=table.names, palette=table.palette)
    return card


AUTHORS = Authors("segmentation", "deeplab_resnest50_ade-2225f09d.pth", unwrap, recognise, _card)
