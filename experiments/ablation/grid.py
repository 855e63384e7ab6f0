"""Parse the cells of a sweep, and apply them to a recipe."""

import ast
import hashlib
import itertools
import json
import re
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from resnest_jax import create_model
from resnest_jax.config import FREE_SECTIONS, complete, differences, flatten, model_fields
from resnest_jax.errors import InputError
from resnest_jax.models.zoo import MODELS

CELL = re.compile(r"(0|[1-9]\d*)s[1-9]\d*x[1-9]\d*d")
FAMILY = "resnest50"

Changes = dict[str, Any]  # dotted config key -> value


class Cell(NamedTuple):
    """A cell of the grid and its changes; ``variant`` is RsKxDd or the name of a model."""

    name: str
    variant: str
    changes: Changes

    @property
    def folder(self) -> str:
        """Name of the cell as a file name."""
        return re.sub(r"[^\w.=+-]+", "_", self.name)


# Radix, cardinality and width as in the paper's table 3.
RADIX = ("0s1x64d", "1s1x64d", "2s1x64d", "4s1x64d", "2s2x40d")
_PLAIN: Changes = {"mix.mixup": 0.0, "augment.policy": "none"}
_MIXUP = _PLAIN | {"mix.mixup": 0.2}
_POLICY = _MIXUP | {"augment.policy": "autoaugment"}
PRESETS: dict[str, tuple[Cell, ...]] = {
    "radix": tuple(Cell(name, name, {}) for name in RADIX),
    # The paper's table of tricks; each cell includes those above it.
    "tricks": (
        Cell("ResNet-D", "0s1x64d", _PLAIN),
        Cell("+ mixup", "0s1x64d", _MIXUP),
        Cell("+ AutoAugment", "0s1x64d", _POLICY),
        Cell("split attention, fast", "2s1x64d", _POLICY),
        Cell("split attention", "2s1x64d", _POLICY | {"model.avd_first": False}),
    ),
    # The units that the paper compares, all in the network of ResNet-D.
    "units": (
        Cell("ResNet-D", "0s1x64d", {}),
        Cell("ResNeXt", "0s32x4d", {}),
        Cell("SE", "0s1x64d", {"model.attention": "se"}),
        Cell("SK", "0s1x64d", {"model.attention": "sk"}),
        Cell("split attention", "2s1x64d", {}),
    ),
}


def parse_grid(words: list[str], axes: list[str], preset: str | None) -> list[Cell]:
    """Return the cells of the preset and the words, times each axis ``KEY=VALUE,VALUE``.

    Args:
      words: ``RsKxDd``, or names of models.
      axes: each a config key and its values; ``;`` separates several in one string.

    Raises:
      InputError: if a word is not a cell, an axis has no values, or a cell appears twice.
    """
    for word in words:
        if not CELL.fullmatch(word) and word not in MODELS:
            raise InputError(
                f"--grid: {word!r} is not a cell; write RsKxDd (radix, cardinality, width), for "
                "instance 2s1x64d, or the name of a model"
            )
    cells = [*(PRESETS[preset] if preset else ()), *(Cell(word, word, {}) for word in words)]
    if not cells:
        raise InputError("--grid or --preset must name at least one cell, for instance 2s1x64d")
    for axis in (part for text in axes for part in text.split(";") if part.strip()):
        key, values = _parse_axis(axis)
        cells = [_extend(cell, key, value) for cell, value in itertools.product(cells, values)]
    names = [cell.name for cell in cells]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"--grid: cell {', '.join(twice)} appears twice; remove one")
    return cells


def _parse_axis(axis: str) -> tuple[str, list[Any]]:
    key, equals, text = axis.strip().partition("=")
    if not equals or not text or not key:
        raise InputError(f"--axis: {axis!r} must be KEY=VALUE,VALUE, for instance epochs=5,10")
    try:
        values = ast.literal_eval(f"[{text}]")
    except (ValueError, SyntaxError):
        values = text.split(",")  # strings without quotes
    return key, values


def _extend(cell: Cell, key: str, value: Any) -> Cell:
    text = str(value).replace(" ", "")
    return cell._replace(name=f"{cell.name} {key}={text}", changes=cell.changes | {key: value})


def model_name(family: str, variant: str) -> str:
    """Return the model of a cell: RsKxDd of the family, or the variant if it is a model."""
    return f"{family}_fast_{variant}" if CELL.fullmatch(variant) else variant


def family_of(config: ConfigDict | None) -> str:
    """Return the part before ``_fast_`` in the name of the recipe's model."""
    return config.model.name.split("_fast_")[0] if config else FAMILY


def cell_config(config: ConfigDict, cell: Cell) -> ConfigDict:
    """Return the completed recipe with the changes of the cell.

    Raises:
      InputError: if a key does not exist, a value has another type, or the model is invalid.
    """
    config = complete(config)
    try:
        changed = complete(flatten(config) | _all_changes(cell, family_of(config)))
    except InputError as error:
        raise InputError(f"cell {cell.name}: {error}") from None
    check_model(model_fields(changed), cell.name)
    return changed


def cell_model_fields(cell: Cell, family: str) -> dict:
    """Return fields of ``create_model`` without a recipe: the published sizes."""
    fields = {}
    for key, value in _all_changes(cell, family).items():
        if key.startswith("model."):  # other changes do not affect costs
            fields[key.removeprefix("model.")] = value
    check_model(fields, cell.name)
    return fields


def check_model(fields: dict, name: str) -> None:
    """Raise InputError with the name of the cell if ``create_model`` refuses the fields."""
    try:
        create_model(**fields)
    except InputError as error:
        raise InputError(f"cell {name}: {error}") from None


def _all_changes(cell: Cell, family: str) -> Changes:
    return {"model.name": model_name(family, cell.variant)} | cell.changes


def refuse_twins(configs: dict[str, ConfigDict]) -> None:
    """Raise InputError if two cells with different names are the same run."""
    seen: dict[str, str] = {}
    for cell, config in configs.items():
        other = seen.setdefault(config_hash(config), cell)
        if other != cell:
            raise InputError(f"--grid: cells {other!r} and {cell!r} are the same run; remove one")


def config_hash(config: ConfigDict) -> str:
    """Return twelve hex digits of all that a result depends on, except the seed.

    They hash the task and the values that differ from its defaults: a new key changes no old hash.
    """
    config = complete(config)
    changed = {
        key: value
        for key, value in differences(config).items()
        if key.split(".")[0] not in (*FREE_SECTIONS, "seed")
    }
    text = json.dumps({"task": config.task, **changed}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
