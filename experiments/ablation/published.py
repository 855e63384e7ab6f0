"""The paper's figures of its own cells, for another data set and machine."""

import dataclasses
from typing import NamedTuple

from resnest_jax import create_model
from resnest_jax.models.zoo import MODELS


class Published(NamedTuple):
    """Figures of ResNeSt-50-fast at 224 pixels on ImageNet.

    Attributes:
      params: trainable parameters.
      gmacs: multiply-adds (1e9) as the authors count them; for 0s1x64d as timm does.
      top1: ImageNet accuracy in percent, from the paper's table of radix and cardinality.
      v100: images/s of inference on one V100, same table.
    """

    params: int
    gmacs: float
    top1: float
    v100: float


_RADIX = {
    "0s1x64d": (79.41, 688.2),
    "1s1x64d": (80.35, 617.6),
    "2s1x64d": (80.64, 533.0),
    "4s1x64d": (80.90, 458.3),
    "2s2x40d": (81.00, 481.8),
}
# The paper's table of tricks: ImageNet top-1 in percent by the cells of the preset.
TRICKS = {
    "ResNet-D": 78.31,
    "+ mixup": 79.15,
    "+ AutoAugment": 79.41,
    "split attention, fast": 80.64,
    "split attention": 81.13,
}
# Fields that do not change the architecture.
_TRAINING_FIELDS = ("dropout", "drop_block", "drop_path", "zero_init_last", "norm", "norm_groups")
_TRAINING_FIELDS += ("remat", "implementation", "platform", "dtype", "parent", "name")


def published(fields: dict) -> Published | None:
    """Return the paper's figures of the model with these fields of ``create_model``.

    None if it is not one of the paper's cells with 50 layers and 1,000 classes.
    """
    family, _, cell = fields["name"].partition("_fast_")
    if family != "resnest50" or cell not in _RADIX:
        return None
    if _architecture(fields) != _architecture({"name": fields["name"]}):
        return None
    # 0s1x64d is ResNet-D-50: the authors' table does not give its GMACs, timm's does.
    entry = MODELS["resnetd50" if cell == "0s1x64d" else fields["name"]]
    return Published(entry.params, entry.gmacs, *_RADIX[cell])


def _architecture(fields: dict) -> dict:
    model = create_model(**fields)
    names = [field.name for field in dataclasses.fields(model)]
    return {name: getattr(model, name) for name in names if name not in _TRAINING_FIELDS}
