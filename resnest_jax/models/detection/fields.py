"""Check the fields of a detector."""

from typing import Any

from resnest_jax.errors import InputError
from resnest_jax.models.detection.anchors import STRIDES
from resnest_jax.models.resnest import ResNeSt

COUNTS = ("num_classes", "features", "hidden", "rpn_samples", "roi_samples", "detections")
COUNTS += ("train_candidates", "test_candidates", "train_proposals", "test_proposals")
FRACTIONS = ("rpn_positives", "proposal_nms", "roi_threshold", "roi_positives")
FRACTIONS += ("score_threshold", "detection_nms")


def check_fields(model: Any) -> None:
    """Raise InputError for a field of an ``RCNN`` that is out of range."""
    backbone = model.backbone
    if not isinstance(backbone, ResNeSt) or backbone.num_classes or backbone.output_stride != 32:
        raise InputError(
            "model field backbone must be a model of the zoo with num_classes=0, output_stride=32"
        )
    for field, least in {**dict.fromkeys(COUNTS, 1), "mask_convolutions": 0}.items():
        value = getattr(model, field)
        if not isinstance(value, int) or value < least:
            raise InputError(f"model field {field} must be an integer >= {least}; got {value!r}")
    for field in FRACTIONS:
        value = getattr(model, field)
        if not isinstance(value, int | float) or not 0 <= value <= 1:
            raise InputError(f"model field {field} must be in [0, 1]; got {value!r}")
    low_high = model.rpn_thresholds
    if not _numbers(low_high, 2) or not 0 <= low_high[0] <= low_high[1] <= 1:
        raise InputError(
            "model field rpn_thresholds must be two numbers in [0, 1], the lower one first; got "
            f"{low_high!r}"
        )
    later = model.cascade_thresholds
    if later != () and (not _numbers(later) or not 0 <= min(later) <= max(later) <= 1):
        raise InputError(f"model field cascade_thresholds must be numbers in [0, 1]; got {later!r}")
    sizes, ratios = model.anchor_sizes, model.anchor_ratios
    if not _numbers(sizes, len(STRIDES)) or min(sizes) <= 0:
        raise InputError(f"model field anchor_sizes must be five positive numbers; got {sizes!r}")
    if not _numbers(ratios) or min(ratios) <= 0:
        raise InputError(f"model field anchor_ratios must be positive numbers; got {ratios!r}")


def _numbers(value: object, length: int | None = None) -> bool:
    """Return whether the value is a tuple of numbers, at least one, of a length if it is given."""
    return (
        isinstance(value, tuple)
        and len(value) > 0
        and length in (None, len(value))
        and all(isinstance(number, int | float) for number in value)
    )
