"""The models by name."""

import dataclasses
import difflib
import re

from resnest_jax.errors import InputError
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
RESNEST_DEPTHS = (14, 26, 50, 101, 200, 269)
RESNET_DEPTHS = (50, 101, 152)

# The ablation models with published weights; the pattern below names any other.
FAST = ("1s1x64d", "2s1x64d", "4s1x64d", "1s2x40d", "2s2x40d", "4s2x40d", "1s4x24d")
FAST_PATTERN = re.compile(r"resnest(\d+)_fast_(\d+)s(\d+)x(\d+)d")

# Radix 0 takes all of split attention's company away: these are the paper's baselines.
RESNET_D = {"radix": 0, "avd": False}
RESNET = RESNET_D | {"deep_stem": False, "avg_down": False}


def _table() -> dict[str, dict]:
    table = {}
    for depth in RESNEST_DEPTHS:
        table[f"resnest{depth}"] = {
            "stem_width": 64 if depth > 50 else 32,
            "dropout": 0.2 if depth >= 200 else 0.0,
        }
    for depth in RESNET_DEPTHS:
        table[f"resnet{depth}"] = RESNET
        table[f"resnetd{depth}"] = RESNET_D
    for name, fields in table.items():
        depth = int(re.search(r"\d+", name)[0])
        table[name] = {"stage_sizes": STAGE_SIZES[depth], **fields}
    for variant in FAST:
        table[f"resnest50_fast_{variant}"] = _fast_fields(f"resnest50_fast_{variant}")
    return table


def _fast_fields(name: str) -> dict | None:
    """Fields of ``resnest{depth}_fast_{R}s{K}x{D}d``; None if the name is not of that form."""
    match = FAST_PATTERN.fullmatch(name)
    if not match or int(match[1]) not in RESNEST_DEPTHS:
        return None
    depth, radix, cardinality, width = map(int, match.groups())
    return {
        "stage_sizes": STAGE_SIZES[depth],
        "radix": radix,
        "cardinality": cardinality,
        "bottleneck_width": width,
        # The paper's 0s1x64d is ResNet-D-50, whose blocks stride in the 3x3.
        "avd": radix > 0,
        "avd_first": True,
    }


MODELS = _table()


def list_models() -> list[str]:
    """Names that ``create_model`` knows, besides ``resnest{depth}_fast_{R}s{K}x{D}d`` at large."""
    return list(MODELS)


def create_model(name: str, **fields) -> ResNeSt:
    """The model of that name, a ``flax.linen.Module``; any field of ``ResNeSt`` can be overridden.

    Args:
      name: one of ``list_models()``, or ``resnest{depth}_fast_{R}s{K}x{D}d`` with any radix R,
        cardinality K and width D (paper, table 3), the average pool before the 3x3.
      **fields: fields of ``ResNeSt``, for instance ``num_classes``, ``dtype``, ``output_stride``.

    Raises:
      InputError: if the name or a field does not exist, or a field is out of range.
    """
    preset = MODELS.get(name) or _fast_fields(name)
    if preset is None:
        close = difflib.get_close_matches(name, MODELS, 1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        depths = "|".join(map(str, RESNEST_DEPTHS))
        raise InputError(
            f"unknown model {name!r}{hint}; there are {', '.join(MODELS)} "
            f"and resnest{{{depths}}}_fast_{{R}}s{{K}}x{{D}}d"
        )
    known = [f.name for f in dataclasses.fields(ResNeSt) if f.name not in ("parent", "name")]
    if unknown := sorted(set(fields) - set(known)):
        raise InputError(f"unknown model field {', '.join(unknown)}; there are {', '.join(known)}")
    # Lists arrive from configs; a Flax module must be hashable.
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
    return ResNeSt(**preset | fields)
