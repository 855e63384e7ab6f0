"""Initial weights of a detector: an ImageNet backbone, or the whole network."""

from typing import Any

import numpy as np

from resnest_jax.errors import InputError
from resnest_jax.files import local_path
from resnest_jax.models.detection.faster_rcnn import FasterRCNN
from resnest_jax.models.resnest import ResNeSt
from resnest_jax.models.zoo import DETECTOR
from resnest_jax.weights.backbone import as_backbone, load_backbone
from resnest_jax.weights.detectron import BACKBONE, CLASSES, PREDICTOR, as_classifier
from resnest_jax.weights.formats import (
    StateDict,
    check_no_checkpoint,
    describe_directory,
    read_file,
    restore_directory,
)
from resnest_jax.weights.torch_names import from_torch

# Top-level modules besides the backbone; the last one depends on the classes.
HEADS = ("fpn", "rpn", "box_head", "box_predictor")
HEADS_OF_CLASSIFIERS = ("fc.", "linear.")  # the second is detectron2's name
STEM = "stem.conv1"  # in the names of a backbone that was published for detection


def load_detector(
    model: FasterRCNN, backbone: str, source: str | None, checkpoint: str = "last"
) -> dict[str, Any]:
    """Load ``{"params", "batch_stats"}``, without the heads that the source does not have.

    The box predictor is left out if it has another number of classes.

    Args:
      model: the model to load.
      backbone: name of its backbone.
      source: a file of weights of a backbone, as published for classification or for detection, or
        of a whole detector under the authors' names, bare or under ``model``; the workdir of a
        run or a directory of weights, of any task. None: the published ImageNet weights.
      checkpoint: of a run, ``last``, ``best`` or a step.

    Raises:
      InputError: as ``load_pretrained``, or if the source has another backbone or other heads.
    """
    if source is None:
        return load_backbone(model.backbone, backbone, None)
    path = local_path("pretrained.weights", source)
    if path.is_dir():
        description, is_run = describe_directory(path)
        if "backbone" not in description:
            return load_backbone(model.backbone, backbone, path, checkpoint)
        if description["backbone"] != backbone:
            raise InputError(
                f"weights {path} have the backbone {description['backbone']}, not {backbone}"
            )
        _, variables = restore_directory(path, is_run, checkpoint)
        return _fitting_heads(model, variables, description["name"])
    check_no_checkpoint(path, checkpoint)
    state_dict = unwrap(read_file(path))
    if any(key.startswith(PREDICTOR) for key in state_dict):
        return _of_detector(model, state_dict)
    if any(key.startswith(STEM) for key in state_dict):
        return _of_backbone(model.backbone, state_dict)
    return load_backbone(model.backbone, backbone, path)


def missing_heads(variables: dict[str, Any]) -> tuple[str, ...]:
    """Return the heads of a detector that the variables lack."""
    return tuple(head for head in HEADS if head not in variables["params"])


def count_classes(variables: dict[str, Any]) -> int:
    """Return the number of classes of a detector, without the background."""
    return len(variables["params"]["box_predictor"]["cls_score"]["bias"]) - 1


def _fitting_heads(model: FasterRCNN, variables: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the variables of a model of that name without heads that do not fit."""
    if name != DETECTOR:
        heads = ()
    elif count_classes(variables) == model.num_classes:
        heads = HEADS
    else:
        heads = HEADS[:-1]
    return {
        collection: {name: part for name, part in tree.items() if name in ("backbone", *heads)}
        for collection, tree in variables.items()
    }


def _of_detector(model: FasterRCNN, state_dict: StateDict) -> dict[str, Any]:
    """Convert the authors' entries, with any number of classes."""
    bias = np.atleast_1d(state_dict.get(CLASSES, np.zeros(2)))
    num_classes = len(bias) - 1
    variables = from_torch(state_dict, model.clone(num_classes=num_classes))
    if num_classes != model.num_classes:
        del variables["params"]["box_predictor"]
    return variables


def _of_backbone(model: ResNeSt, state_dict: StateDict) -> dict[str, Any]:
    """Convert a backbone under the names of detectron2."""
    entries = {k: v for k, v in state_dict.items() if not k.startswith(HEADS_OF_CLASSIFIERS)}
    return as_backbone(from_torch(as_classifier(entries, model), model))


def unwrap(state_dict: StateDict) -> StateDict:
    """Remove what is before the names of a detector, as ``module.``, or of a lone backbone."""
    whole = any(PREDICTOR in key for key in state_dict)
    first = BACKBONE if whole else STEM
    wrapper = next((key.partition(first)[0] for key in state_dict if first in key), "")
    return {key.removeprefix(wrapper): value for key, value in state_dict.items()}
