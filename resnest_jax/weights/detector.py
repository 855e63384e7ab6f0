"""Initial weights of a detector: an ImageNet backbone, or the whole network."""

from typing import Any

from resnest_jax.errors import InputError
from resnest_jax.files import local_path
from resnest_jax.models.detection.rcnn import RCNN
from resnest_jax.models.detection.roi_heads import stage_names
from resnest_jax.models.resnest import ResNeSt
from resnest_jax.models.zoo import RCNNS
from resnest_jax.weights.backbone import as_backbone, load_backbone
from resnest_jax.weights.detectron import (
    BACKBONE,
    PREDICTOR,
    as_classifier,
    count_stages,
    fields_of,
)
from resnest_jax.weights.formats import (
    StateDict,
    check_no_checkpoint,
    describe_directory,
    read_file,
    restore_directory,
)
from resnest_jax.weights.torch_names import from_torch

HEADS_OF_CLASSIFIERS = ("fc.", "linear.")  # the second is detectron2's name
FIELDS_OF_HEADS = ("num_classes", "cascade_thresholds", "mask_convolutions")  # of a file
STEM = "stem.conv1"  # in the names of a backbone that was published for detection


def load_detector(
    model: RCNN, backbone: str, source: str | None, checkpoint: str = "last"
) -> dict[str, Any]:
    """Load ``{"params", "batch_stats"}``, without the heads that the source does not have.

    The heads are those that both have: a mask head is left out of a model without one. Predictors
    are left out if they have another number of classes.

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
        known = description["name"] in RCNNS
        return _keep(variables, _fitting_heads(model, variables) if known else ())
    check_no_checkpoint(path, checkpoint)
    state_dict = unwrap(read_file(path))
    if any(key.startswith(PREDICTOR) for key in state_dict):
        return _of_detector(model, state_dict)
    if any(key.startswith(STEM) for key in state_dict):
        return _of_backbone(model.backbone, state_dict)
    return load_backbone(model.backbone, backbone, path)


def heads(model: RCNN) -> tuple[str, ...]:
    """Return the top-level modules of a detector besides the backbone."""
    stages = stage_names(model.cascade_thresholds)
    boxes = [f"{name}{stage}" for name in ("box_head", "box_predictor") for stage in stages]
    masks = ("mask_head", "mask_predictor") if model.mask_convolutions else ()
    return ("fpn", "rpn", *boxes, *masks)


def missing_heads(model: RCNN, variables: dict[str, Any]) -> tuple[str, ...]:
    """Return the heads of a detector that the variables lack."""
    return tuple(head for head in heads(model) if head not in variables["params"])


def count_classes(variables: dict[str, Any]) -> int:
    """Return the number of classes of a detector, without the background."""
    params = variables["params"]
    first = next(params[name] for name in sorted(params) if name.startswith("box_predictor"))
    return len(first["cls_score"]["bias"]) - 1


def _fitting_heads(model: RCNN, variables: dict[str, Any]) -> tuple[str, ...]:
    """Return the heads of a detector that fit another detector's variables."""
    same = count_classes(variables) == model.num_classes
    return tuple(head for head in heads(model) if same or "predictor" not in head)


def _keep(variables: dict[str, Any], kept: tuple[str, ...]) -> dict[str, Any]:
    """Return the variables of the backbone and of some heads."""
    return {
        collection: {name: part for name, part in tree.items() if name in ("backbone", *kept)}
        for collection, tree in variables.items()
    }


def _of_detector(model: RCNN, state_dict: StateDict) -> dict[str, Any]:
    """Convert the authors' entries of any detector, with any number of classes."""
    thresholds = (0.5,) * (count_stages(state_dict) - 1)  # no weight depends on them
    fields = {"cascade_thresholds": thresholds, "mask_convolutions": 0} | fields_of(state_dict)
    of_file = model.clone(**{name: fields[name] for name in FIELDS_OF_HEADS if name in fields})
    variables = from_torch(state_dict, of_file)
    return _keep(variables, _fitting_heads(model, variables))


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
