"""What the paper measured of its own cells: another data set, another machine."""

from typing import NamedTuple

from resnest_jax.models.zoo import MODELS


class Published(NamedTuple):
    """Figures of ResNeSt-50-fast at 224 pixels on ImageNet.

    Attributes:
      params: trainable parameters.
      gmacs: multiply-adds (1e9), as the authors count them.
      top1: ImageNet accuracy in percent, paper, the table of radix and cardinality.
      v100: images/s on one V100, inference, same table.
    """

    params: int
    gmacs: float | None
    top1: float
    v100: float


_PAPER = {
    "0s1x64d": (79.41, 688.2),
    "1s1x64d": (80.35, 617.6),
    "2s1x64d": (80.64, 533.0),
    "4s1x64d": (80.90, 458.3),
    "2s2x40d": (81.00, 481.8),
}


def published(model_name: str) -> Published | None:
    """The paper's figures for ``resnest50_fast_CELL``; None where it has none."""
    family, _, cell = model_name.partition("_fast_")
    if family != "resnest50" or cell not in _PAPER:
        return None
    # 0s1x64d is ResNet-D-50; its GMACs are timm's there, and the authors give none.
    entry = MODELS["resnetd50" if cell == "0s1x64d" else model_name]
    gmacs = None if cell == "0s1x64d" else entry.gmacs
    return Published(entry.params, gmacs, *_PAPER[cell])
