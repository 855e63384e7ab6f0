"""Registry of models and published figures."""

import dataclasses
import difflib
import re
from typing import Any, Literal, NamedTuple, overload

import flax.linen as nn
import numpy as np

from resnest_jax.errors import InputError
from resnest_jax.models.deeplab import HEADS, SegmentationModel
from resnest_jax.models.detection.rcnn import RCNN
from resnest_jax.models.resnest import ResNeSt

STAGE_SIZES = {
    14: (1, 1, 1, 1),
    26: (2, 2, 2, 2),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
    269: (3, 30, 48, 8),
}

AUTHORS = "github.com/zhanghang1989/ResNeSt"
GLUON = "GluonCV"
TIMM = "timm 1.0"
TIMM_BLOCKS = "timm 1.0, its skresnet50 at depth 101"


class Model(NamedTuple):
    """A model: its fields of ``ResNeSt`` and its published figures.

    ``gmacs`` are multiply-adds (1e9) at ``gmacs_size`` pixels, counted by ``convention``, see
    ``count_macs``; ``top1`` is ImageNet accuracy in percent at a test crop of ``test_crop``
    pixels; ``source`` is the source of parameters and accuracy.
    """

    fields: dict[str, Any]
    params: int
    gmacs: float | None = None
    gmacs_size: int = 224
    test_crop: int = 224
    top1: float | None = None
    source: str = AUTHORS
    convention: str = "fvcore"


def _resnest(depth: int, **fields: Any) -> dict[str, Any]:
    width = 64 if depth > 50 else 32
    dropout = 0.2 if depth >= 200 else 0.0
    fields = {"stem_width": width, "dropout": dropout} | fields
    return {"stage_sizes": STAGE_SIZES[depth], **fields}


def _fast(depth: int, radix: int, cardinality: int, width: int) -> dict[str, Any]:
    return {
        "stage_sizes": STAGE_SIZES[depth],
        "radix": radix,
        "cardinality": cardinality,
        "bottleneck_width": width,
        # The paper's 0s1x64d is ResNet-D-50, whose blocks have the stride in the 3x3.
        "avd": radix > 0,
        "avd_first": True,
    }


def _resnet_d(depth: int) -> dict[str, Any]:
    return {"stage_sizes": STAGE_SIZES[depth], "radix": 0, "avd": False}


def _resnet(depth: int, **fields: Any) -> dict[str, Any]:
    return _resnet_d(depth) | {"deep_stem": False, "avg_down": False} | fields


def _ablated(
    radix: int, cardinality: int, width: int, params: int, gmacs: float, top1: float
) -> Model:
    """Return a row of the authors' ablation."""
    fields = _fast(50, radix, cardinality, width)
    return Model(fields, params, gmacs, top1=top1, convention="authors")


_RESNEXT = {"cardinality": 32, "bottleneck_width": 4}

MODELS: dict[str, Model] = {
    "resnest14": Model(_resnest(14), 10_611_688, 2.76, top1=75.75, source=GLUON),
    "resnest26": Model(_resnest(26), 17_069_448, 3.64, top1=78.68, source=GLUON),
    "resnest50": Model(_resnest(50), 27_483_240, 5.40, top1=81.03),
    "resnest101": Model(_resnest(101), 48_275_016, 13.38, 256, 256, 82.83),
    "resnest200": Model(_resnest(200), 70_201_544, 35.69, 320, 320, 83.84),
    "resnest269": Model(_resnest(269), 110_929_480, 77.69, 416, 416, 84.54),
    "resnest50_fast_1s1x64d": _ablated(1, 1, 64, 26_217_896, 4.34, 80.33),
    "resnest50_fast_2s1x64d": _ablated(2, 1, 64, 27_483_240, 4.34, 80.53),
    "resnest50_fast_4s1x64d": _ablated(4, 1, 64, 31_912_712, 4.35, 80.76),
    "resnest50_fast_1s2x40d": _ablated(1, 2, 40, 25_946_680, 4.38, 80.59),
    "resnest50_fast_2s2x40d": _ablated(2, 2, 40, 26_943_792, 4.38, 80.61),
    "resnest50_fast_4s2x40d": _ablated(4, 2, 40, 30_417_592, 4.41, 81.14),
    "resnest50_fast_1s4x24d": _ablated(1, 4, 24, 25_677_000, 4.42, 80.99),
    "resnet50": Model(_resnet(50), 25_557_032, 4.11, source=TIMM),
    "resnet101": Model(_resnet(101), 44_549_160, source=TIMM),
    "resnet152": Model(_resnet(152), 60_192_808, source=TIMM),
    "resnetd50": Model(_resnet_d(50), 25_576_264, 4.35, source=TIMM),
    "resnetd101": Model(_resnet_d(101), 44_568_392, source=TIMM),
    "resnetd152": Model(_resnet_d(152), 60_212_040, source=TIMM),
    "resnext50_32x4d": Model(_resnet(50, **_RESNEXT), 25_028_904, source=TIMM),
    "resnext101_32x4d": Model(_resnet(101, **_RESNEXT), 44_177_704, source=TIMM),
    "seresnet50": Model(_resnet(50, attention="se"), 28_088_024, source=TIMM),
    "seresnet101": Model(_resnet(101, attention="se"), 49_326_872, source=TIMM),
    "skresnet50": Model(_resnet(50, attention="sk"), 25_803_160, source=TIMM),
    "skresnet101": Model(_resnet(101, attention="sk"), 45_013_432, source=TIMM_BLOCKS),
}

CASCADE = {"cascade_thresholds": (0.6, 0.7), "train_proposals": 2000}
MASK = {"mask_convolutions": 4}
RCNNS = {
    "faster_rcnn": {},
    "mask_rcnn": MASK,
    "cascade_rcnn": CASCADE,
    "cascade_mask_rcnn": CASCADE | MASK,
}

# Old name of a field -> new name.
RENAMED = {"expression": "implementation"}

FAST_PATTERN = re.compile(r"resnest(\d+)_fast_(\d+)s(\d+)x(\d+)d")
FAST_DEPTHS = (14, 26, 50, 101, 200, 269)


def list_models() -> list[str]:
    """List the models by name, without the general ``resnest{depth}_fast_{R}s{K}x{D}d``."""
    return list(MODELS)


@overload
def create_model(  # pyright: ignore[reportOverlappingOverload]
    name: Literal["deeplabv3", "fcn"], **fields: Any
) -> SegmentationModel: ...
@overload
def create_model(  # pyright: ignore[reportOverlappingOverload]
    name: Literal["faster_rcnn", "mask_rcnn", "cascade_rcnn", "cascade_mask_rcnn"], **fields: Any
) -> RCNN: ...
@overload
def create_model(name: str, **fields: Any) -> ResNeSt: ...
def create_model(name: str, **fields: Any) -> ResNeSt | SegmentationModel | RCNN:
    """Create a model by name, a ``flax.linen.Module``; any of its fields can be overridden.

    Args:
      name: one of ``list_models()``, or ``resnest{depth}_fast_{R}s{K}x{D}d`` with any radix R,
        cardinality K and width D (paper, table 3) and the average pool before the 3x3; or
        ``deeplabv3`` or ``fcn``, see ``SegmentationModel``; or ``faster_rcnn``, ``mask_rcnn``,
        ``cascade_rcnn`` or ``cascade_mask_rcnn``, see ``RCNN``.
      **fields: fields of ``ResNeSt``, for example ``num_classes``, ``dtype``, ``output_stride``.
        For segmentation and detection those of ``SegmentationModel`` or ``RCNN``, with
        ``backbone`` a name (default ``resnest50``), and all others of the backbone. By default its
        ``output_stride`` is 8 for segmentation, its ``frozen_stages`` 1 for detection.

    Raises:
      InputError: if the name or a field does not exist, or a field is out of range.
    """
    fields = {RENAMED.get(field, field): value for field, value in fields.items()}
    fields = {field: _plain(value) for field, value in fields.items()}
    if name in HEADS:
        backbone, own = _on_backbone(SegmentationModel, fields, output_stride=8)
        return SegmentationModel(backbone, name, **own)
    if name in RCNNS:
        backbone, own = _on_backbone(RCNN, fields, frozen_stages=1)
        return RCNN(backbone, **RCNNS[name] | own)
    preset = _fields_of(name)
    _check_known(fields, _names_of(ResNeSt))
    return ResNeSt(**preset | fields)


def _on_backbone(
    model: type[nn.Module], fields: dict[str, Any], **defaults: Any
) -> tuple[ResNeSt, dict[str, Any]]:
    """Return the backbone of a model that has one, and the fields of its own."""
    own = [name for name in _names_of(model) if name not in ("backbone", "head")]
    of_backbone = [name for name in _names_of(ResNeSt) if name not in own]
    _check_known(fields, ["backbone", *own, *of_backbone])
    preset = _fields_of(fields.get("backbone", "resnest50"))
    preset = {**preset, "num_classes": 0, **defaults}  # a new dict: that one is shared
    backbone = ResNeSt(**preset | {k: v for k, v in fields.items() if k in of_backbone})
    return backbone, {k: v for k, v in fields.items() if k in own}


def _names_of(module: type[nn.Module]) -> list[str]:
    return [f.name for f in dataclasses.fields(module) if f.name not in ("parent", "name")]


def _check_known(fields: dict[str, Any], known: list[str]) -> None:
    if unknown := sorted(set(fields) - set(known)):
        raise InputError(f"unknown model field {', '.join(unknown)}; there are {', '.join(known)}")


def _plain(value: Any) -> Any:
    """Make lists of configs tuples, which a Flax module can hash, and NumPy's numbers Python's."""
    if isinstance(value, list | tuple | np.ndarray) and np.ndim(value) == 1:
        return tuple(_plain(element) for element in value)
    return value.item() if isinstance(value, np.number) else value


def _fields_of(name: str) -> dict[str, Any]:
    if name in MODELS:
        return MODELS[name].fields
    match = FAST_PATTERN.fullmatch(name)
    if match and int(match[1]) in FAST_DEPTHS:
        return _fast(*map(int, match.groups()))
    close = difflib.get_close_matches(name, MODELS, 1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    depths = "|".join(map(str, FAST_DEPTHS))
    raise InputError(
        f"unknown model {name!r}{hint}; there are {', '.join(MODELS)} "
        f"and resnest{{{depths}}}_fast_{{R}}s{{K}}x{{D}}d"
    )
