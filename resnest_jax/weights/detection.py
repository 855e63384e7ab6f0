"""A detector with what it takes to use it: its classes, and the sizes of test images."""

from pathlib import Path
from typing import Any, cast

from resnest_jax.data.coco import coco_classes
from resnest_jax.errors import InputError
from resnest_jax.models.detection.rcnn import RCNN
from resnest_jax.models.zoo import RCNNS
from resnest_jax.weights.backbone import find_backbone
from resnest_jax.weights.card import Card, read_card
from resnest_jax.weights.detector import count_classes, unwrap
from resnest_jax.weights.detectron import (
    BACKBONE,
    CLASSES,
    anchors_of,
    as_classifier,
    count_stages,
    fields_of,
)
from resnest_jax.weights.formats import StateDict
from resnest_jax.weights.network import Authors, Network, read_stored
from resnest_jax.weights.published import DETECTORS


class Detector(Network):
    """A detector and what is known of it, see ``Network``."""

    @property
    def num_classes(self) -> int:
        """Number of classes without the background."""
        return count_classes(self.variables)

    @property
    def model(self) -> RCNN:
        """The network."""
        return cast(RCNN, super().model)

    @property
    def full_card(self) -> Card:
        """The card, with the test images of the config."""
        from resnest_jax.config.detection import eval_sides

        return super().full_card._replace(long_side=eval_sides(self.config)[1])


def load_weights(
    name: str | None,
    weights: str | None,
    checkpoint: str = "last",
    *,
    backbone: str | None = None,
) -> Detector:
    """Load a detector.

    Args:
      name: one of ``models.zoo.RCNNS``; None: what the weights say.
      weights: the directory of a run or of weights, or a file of the authors' entries, which have
        detectron2's names: a state dictionary or a training checkpoint. Its name, classes, widths
        and anchors and, if it is of the zoo, its backbone are seen from the entries.
      checkpoint: of a run, ``last``, ``best`` or a step.
      backbone: name of the backbone; None: what the weights say.

    Raises:
      InputError: if the weights do not exist, are damaged, are of another model, or if the backbone
        is not of the zoo and not given.
    """
    return Detector(*read_stored(AUTHORS, name, weights, checkpoint, backbone)).checked()


def recognise(path: Path, state_dict: StateDict, backbone: str | None = None) -> dict[str, Any]:
    """Return name and fields of the model of the authors' entries.

    Raises:
      InputError: if they are of no detector, or of no backbone of the zoo.
    """
    stages = count_stages(state_dict)
    if not stages:
        raise InputError(
            f"weights {path} are not of a detector under the authors' names: there is no {CLASSES}"
        )
    fields = fields_of(state_dict)
    kinds = {
        ("cascade_thresholds" in preset, "mask_convolutions" in preset): name
        for name, preset in RCNNS.items()
    }
    return {
        "name": kinds[stages > 1, "mask_convolutions" in fields],
        "backbone": backbone or find_backbone(path, state_dict, BACKBONE, as_classifier),
        **fields,
        **anchors_of(state_dict),
    }


def _card(path: Path) -> Card:
    """Return the card of a file; a published one has the classes of COCO."""
    card = read_card(path)
    return card._replace(class_names=coco_classes()) if path.stem in DETECTORS else card


AUTHORS = Authors("detection", f"{DETECTORS[0]}.pth", unwrap, recognise, _card)
