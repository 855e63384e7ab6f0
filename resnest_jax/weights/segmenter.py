"""Initial weights of a segmentation model: an ImageNet backbone, or backbone and heads."""

from typing import Any

import numpy as np

from resnest_jax.errors import InputError
from resnest_jax.files import local_path
from resnest_jax.models.deeplab import SegmentationModel
from resnest_jax.weights.backbone import as_backbone, load_backbone
from resnest_jax.weights.formats import (
    StateDict,
    check_no_checkpoint,
    describe_directory,
    read_file,
    restore_directory,
    task_of,
)
from resnest_jax.weights.torch_names import FIRST_BLOCK, from_torch

HEADS = ("head", "auxiliary")
BACKBONE = "pretrained."  # the authors' name of the backbone
# The authors' names of the heads, and of the last layers, whose length is the number of classes.
TORCH_HEADS = {"head": "head.", "auxiliary": "auxlayer."}
LAST = {"deeplabv3": "head.block.4.weight", "fcn": "head.conv5.4.weight"}


def load_segmenter(
    model: SegmentationModel, backbone: str, source: str | None, checkpoint: str = "last"
) -> dict[str, Any]:
    """Load ``{"params", "batch_stats"}``, without the heads that the source does not have.

    A head of another kind or with another number of classes is left out, and then the auxiliary
    head too.

    Args:
      model: the model to load.
      backbone: name of its backbone.
      source: a file of weights of the backbone, or of a whole model under the authors' names; the
        workdir of a run or a directory of weights, of classification or of segmentation. None: the
        published ImageNet weights.
      checkpoint: of a run, ``last``, ``best`` or a step.

    Raises:
      InputError: as ``load_pretrained``, or if the source has another backbone.
    """
    if source is None:
        return load_backbone(model.backbone, backbone, None)
    path = local_path("pretrained.weights", source)
    if path.is_dir():
        description, is_run = describe_directory(path)
        if task_of(description) != "segmentation":
            return load_backbone(model.backbone, backbone, path, checkpoint)
        if description["backbone"] != backbone:
            raise InputError(
                f"weights {path} have the backbone {description['backbone']}, not {backbone}"
            )
        _, variables = restore_directory(path, is_run, checkpoint)
        return _fitting_heads(model, variables, description["name"])
    check_no_checkpoint(path, checkpoint)
    state_dict = unwrap(read_file(path))
    if not any(key.startswith(BACKBONE) for key in state_dict):
        return load_backbone(model.backbone, backbone, path)
    return _of_state_dict(model, state_dict)


def missing_heads(model: SegmentationModel, variables: dict[str, Any]) -> tuple[str, ...]:
    """Return the heads of the model that the variables lack."""
    wanted = HEADS if model.auxiliary else HEADS[:1]
    return tuple(head for head in wanted if head not in variables["params"])


def _fitting_heads(
    model: SegmentationModel, variables: dict[str, Any], head: str
) -> dict[str, Any]:
    """Return variables of another model, whose head has a name, without heads that do not fit."""
    same = head == model.head and count_classes(variables) == model.num_classes
    keep = {"backbone", *HEADS[: 1 + model.auxiliary]} if same else {"backbone"}
    return {
        collection: {name: part for name, part in tree.items() if name in keep}
        for collection, tree in variables.items()
    }


def count_classes(variables: dict[str, Any]) -> int:
    """Return the number of classes of a segmentation model."""
    head = variables["params"]["head"]
    return len(head.get("classifier", head)["conv2"]["bias"])


def _of_state_dict(model: SegmentationModel, state_dict: StateDict) -> dict[str, Any]:
    """Convert the authors' entries; all of a head or none must be there."""
    last = LAST[model.head]
    same = last in state_dict and len(np.atleast_1d(state_dict[last])) == model.num_classes
    present = {
        head
        for head, prefix in TORCH_HEADS.items()
        if same and any(key.startswith(prefix) for key in state_dict)
    }
    if "head" not in present:
        entries = {
            key.removeprefix(BACKBONE): value
            for key, value in state_dict.items()
            if key.startswith(BACKBONE)
        }
        return as_backbone(from_torch(entries, model.backbone))
    with_auxiliary = model.auxiliary and "auxiliary" in present
    if not with_auxiliary:
        prefix = TORCH_HEADS["auxiliary"]
        state_dict = {k: v for k, v in state_dict.items() if not k.startswith(prefix)}
    return from_torch(state_dict, model.clone(auxiliary=with_auxiliary))


def unwrap(state_dict: StateDict) -> StateDict:
    """Remove what wrappers put before the names, as ``module.``, from those of a whole model."""
    wrapper = next(
        (k.partition(BACKBONE + FIRST_BLOCK)[0] for k in state_dict if BACKBONE + FIRST_BLOCK in k),
        "",
    )
    return {key.removeprefix(wrapper): value for key, value in state_dict.items()}
