"""Configs: all keys of every task, with their defaults.

A recipe in ``configs/`` sets only what differs from ``default_config(task)``. ``complete`` returns
all keys for a stored or hand-written config, also for an old one.
"""

from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from resnest_jax.config import classification, detection, segmentation
from resnest_jax.config.common import common_keys
from resnest_jax.errors import InputError

# Task -> its own keys; a section with the name of a common section is merged with it.
TASKS: dict[str, Callable[[], dict[str, Any]]] = {
    "classification": classification.classification_keys,
    "segmentation": segmentation.segmentation_keys,
    "detection": detection.detection_keys,
}
# Old key -> new key, for stored configs.
RENAMED = {"model.expression": "model.implementation"}
# Sections and keys that do not affect results: they may change when a run is resumed.
FREE_SECTIONS = ("loader", "checkpoint", "log_every_steps", "tracker")
# What may change too when a run goes back to a checkpoint that is named.
CHANGEABLE = ("optimizer", "loss", "augment", "data", "mix", "epochs", "steps", "evaluation")
CHANGEABLE += ("eval_every_epochs", "eval_every_steps", "patience", "recompute_batch_norm")

_TYPES = {
    bool: "True or False",
    int: "an integer",
    float: "a number",
    str: "a string",
    tuple: "a tuple",
    object: "an integer or a tuple of pairs",  # image_size
}


def default_config(task: str) -> ConfigDict:
    """Return the default config of a task, locked.

    Raises:
      InputError: if the task is unknown.
    """
    if task not in list(TASKS):  # a list, since the value may be unhashable
        raise InputError(f"config.task must be one of {', '.join(TASKS)}; got {task!r}")
    config = ConfigDict(common_keys())
    config.update(TASKS[task]())
    config.task = task
    return config.lock()


def complete(values: Mapping[str, Any] | ConfigDict) -> ConfigDict:
    """Return the defaults of the config's task, updated with the given values.

    Lists become tuples; integers become floats if the default is a float. The result is a new
    config, locked.

    Args:
      values: a config, complete or not, in sections or by dotted key; it may be read from JSON and
        have old names of keys.

    Raises:
      InputError: if the task or a key is unknown, or a value is of the wrong type.
    """
    given = flatten(values)
    for old, new in RENAMED.items():
        if old in given and new in given:
            raise InputError(f"config.{old} is now config.{new}; both are set: remove the first")
        if old in given:
            given[new] = given.pop(old)
    config = default_config(given.get("task", "classification"))
    for key, value in given.items():
        _set(config, key, value)
    return config


def flatten(values: Mapping[str, Any] | ConfigDict) -> dict[str, Any]:
    """Return the values of a config by dotted key."""
    flat = {}
    for key, value in values.items():
        if isinstance(value, Mapping | ConfigDict):
            flat |= {f"{key}.{inner}": leaf for inner, leaf in flatten(value).items()}
        else:
            flat[key] = value
    return flat


def differences(config: ConfigDict) -> dict[str, Any]:
    """Return the values that differ from the defaults of the config's task, by dotted key."""
    defaults = flatten(default_config(config.task))
    return {key: value for key, value in flatten(config).items() if value != defaults[key]}


def best_metric(config: ConfigDict) -> str:
    """Return the name of the metric that selects the best checkpoint of a run."""
    modules = {
        "classification": classification,
        "segmentation": segmentation,
        "detection": detection,
    }
    return modules[config.task].best_metric(config)


def model_fields(config: ConfigDict) -> dict[str, Any]:
    """Return the arguments of ``create_model`` in ``config.model``: name and given fields."""
    fields = config.model.to_dict()
    return {k: v for k, v in fields.items() if v is not None}


def _set(config: ConfigDict, key: str, value: Any) -> None:
    section, where = config, "config"
    *sections, last = key.split(".")
    for name in sections:
        section, where = _member(section, name, where), f"{where}.{name}"
    default = _member(section, last, where)
    if isinstance(default, ConfigDict):
        raise InputError(
            f"{where}.{last} must be a section with keys of {', '.join(default)}; got {value!r}"
        )
    kind = section.get_type(last)
    section[last] = _checked(f"{where}.{last}", _tuples(value), kind, optional=default is None)


def _member(section: Any, name: str, where: str) -> Any:
    if not isinstance(section, ConfigDict):
        raise InputError(f"{where} is a value and has no keys; got {where}.{name}")
    if name not in section:
        raise InputError(f"{where} has no key {name!r}; its keys are {', '.join(section)}")
    return section[name]


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def _checked(name: str, value: Any, kind: type, optional: bool) -> Any:
    """Return the value with the type of its default."""
    if value is None and optional:
        return None
    allowed = {float: (int, float), object: (int, tuple)}.get(kind, kind)
    if not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool):
        also = ", or None for the model's own" if optional else ""
        raise InputError(f"{name} must be {_TYPES[kind]}{also}; got {value!r}")
    return float(value) if kind is float and isinstance(value, int) else value
