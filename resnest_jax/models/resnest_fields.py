"""Checks of the fields of a ``ResNeSt``."""

from typing import Any

import jax.numpy as jnp

from resnest_jax.errors import InputError
from resnest_jax.models.layers.convolution import check_implementation
from resnest_jax.models.layers.normalization import MODES
from resnest_jax.models.layers.platforms import check_platform

ATTENTIONS = ("split", "se", "sk")
DTYPES = ("float32", "bfloat16", "float16", "float64")  # of fewer bits nothing is left


def check_fields(model: Any) -> None:
    """Raise InputError if a field of a ``ResNeSt`` is out of range."""
    minima = {"num_classes": 0, "radix": 0, "cardinality": 1, "bottleneck_width": 1}
    minima |= {"stem_width": 1, "norm_groups": 1}
    for field, minimum in minima.items():
        value = getattr(model, field)
        if not isinstance(value, int) or value < minimum:
            raise InputError(f"model field {field} must be an integer >= {minimum}; got {value!r}")
    for field in ("stage_sizes", "planes"):
        value = getattr(model, field)
        four = isinstance(value, tuple) and len(value) == 4
        if not four or any(not isinstance(n, int) or n < 1 for n in value):
            raise InputError(f"model field {field} must be four positive integers; got {value!r}")
    check_implementation(model.implementation)
    check_platform(model.platform)
    choices = {"output_stride": (8, 16, 32), "attention": ATTENTIONS, "norm": MODES}
    choices |= {"frozen_stages": (0, 1, 2, 3, 4)}
    for field, allowed in choices.items():
        if (value := getattr(model, field)) not in allowed:
            raise InputError(f"model field {field} must be one of {allowed}; got {value!r}")
    for field in ("dropout", "drop_block", "drop_path"):
        value = getattr(model, field)
        if not isinstance(value, int | float) or not 0 <= value < 1:
            raise InputError(f"model field {field} must be in [0, 1); got {value!r}")
    if not isinstance(model.remat, tuple) or not set(model.remat) <= {1, 2, 3, 4}:
        raise InputError(f"model field remat must be some of the stages 1 to 4; got {model.remat}")
    if model.attention != "split" and model.radix:
        raise InputError(
            f"model field attention {model.attention!r} needs radix 0; got {model.radix}"
        )
    try:
        known = jnp.dtype(model.dtype).name in DTYPES
    except TypeError:
        known = False
    if not known:
        raise InputError(f"model field dtype must be one of {DTYPES}; got {model.dtype!r}")
    groups = max(model.radix, 1) * model.cardinality
    for planes in model.planes:
        width = int(planes * model.bottleneck_width / 64) * model.cardinality
        if width == 0 or width % groups:
            raise InputError(
                f"model fields radix {model.radix}, cardinality {model.cardinality}: their "
                f"{groups} groups must divide the {width} channels that bottleneck_width "
                f"{model.bottleneck_width} gives at planes {planes}"
            )
