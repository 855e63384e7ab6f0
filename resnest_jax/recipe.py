"""What a config describes: its keys, and the run built from them."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import optax
from ml_collections import ConfigDict

from resnest_jax.data.batches import ImageBatches
from resnest_jax.errors import InputError
from resnest_jax.models.zoo import create_model
from resnest_jax.tasks.classification import Classification
from resnest_jax.training.checkpoints import latest_step
from resnest_jax.training.loop import Plan
from resnest_jax.training.mesh import check_batch_size
from resnest_jax.training.metrics import write_json
from resnest_jax.training.optimizer import make_optimizer, make_schedule

# Keys of every recipe; those with a tuple are sections of these keys (None: any).
KEYS: dict[str, tuple[str, ...] | None] = {
    "seed": (),
    "model": None,  # name, and fields of the model
    "dataset": (),
    "train_split": (),
    "eval_split": (),
    "image_size": (),
    "batch_size": (),
    "epochs": (),
    "label_smoothing": (),
    "augment": ("shift", "flip", "mixup"),
    "optimizer": (
        "base_learning_rate",
        "warmup_epochs",
        "momentum",
        "nesterov",
        "weight_decay",
    ),
    "loader": ("workers",),
    "log_every_steps": (),
    "eval_every_epochs": (),
    "checkpoint": ("keep_last",),
}
# Sections that change no result, so that a run may go on with other values.
FREE_SECTIONS = ("loader", "checkpoint")
CONFIG = "config.json"


class Run(NamedTuple):
    """A run, ready to start."""

    task: Classification
    batches: ImageBatches
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    plan: Plan


def build(config: ConfigDict) -> Run:
    """Check the config and open everything that it names.

    Raises:
      InputError: if a key is missing, unknown or out of range, or what it names is not there.
    """
    check_keys(config)
    for key in ("epochs", "image_size", "log_every_steps", "eval_every_epochs"):
        if config[key] <= 0:
            raise InputError(f"{key} must be positive; got {config[key]}")
    check_batch_size(config.batch_size)
    augment = config.augment.to_dict()
    mixup_alpha = augment.pop("mixup")
    model_fields = config.model.to_dict()
    name = model_fields.pop("name")
    create_model(name, **model_fields)  # before a data set is prepared for nothing
    batches = ImageBatches(
        config.dataset,
        train_split=config.train_split,
        eval_split=config.eval_split,
        image_size=config.image_size,
        batch_size=config.batch_size,
        seed=config.seed,
        **config.loader,
        **augment,
    )
    num_classes = len(batches.class_names)
    if model_fields.setdefault("num_classes", num_classes) != num_classes:
        raise InputError(
            f"model.num_classes is {model_fields['num_classes']}, but {config.dataset} has "
            f"{num_classes} classes; leave it out"
        )
    task = Classification(
        create_model(name, **model_fields),
        num_classes,
        config.image_size,
        config.label_smoothing,
        mixup_alpha,
    )
    steps_per_epoch = batches.num_train / config.batch_size
    optimizer = config.optimizer.to_dict()
    schedule = make_schedule(
        base_learning_rate=optimizer.pop("base_learning_rate"),
        warmup_epochs=optimizer.pop("warmup_epochs"),
        epochs=config.epochs,
        batch_size=config.batch_size,
        steps_per_epoch=steps_per_epoch,
    )
    plan = Plan(
        total_steps=max(1, round(config.epochs * steps_per_epoch)),
        steps_per_epoch=steps_per_epoch,
        log_every=config.log_every_steps,
        eval_every=max(1, round(config.eval_every_epochs * steps_per_epoch)),
        batch_size=config.batch_size,
    )
    return Run(task, batches, make_optimizer(schedule, **optimizer), schedule, plan)


def check_keys(config: ConfigDict) -> None:
    """Raise InputError unless the config has exactly the keys of a recipe."""
    _compare("config", set(config), set(KEYS))
    for section, keys in KEYS.items():
        if keys:
            _compare(f"config.{section}", set(config[section]), set(keys))
    if "name" not in config.model:
        raise InputError("config.model.name is missing: the name of a model")


def _compare(where: str, present: set[str], known: set[str]) -> None:
    for problem, keys in (("missing", known - present), ("unknown", present - known)):
        if keys:
            raise InputError(
                f"{where}: {problem} {', '.join(sorted(keys))}; its keys are "
                f"{', '.join(sorted(known))}"
            )


def claim_workdir(workdir: Path, config: ConfigDict) -> None:
    """Make the directory and write the config into it; refuse another run's directory.

    Raises:
      InputError: if the directory cannot be written, or holds checkpoints of another config.
    """
    resolved = json.loads(json.dumps(config.to_dict()))
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if latest_step(workdir) is not None:
            _check_same(load_config(workdir), resolved, workdir)
        write_json(workdir / CONFIG, resolved)
    except OSError as error:
        raise InputError(f"workdir {workdir} cannot be written: {error.strerror}") from None


def load_config(workdir: Path) -> ConfigDict:
    """The resolved config of the run in ``workdir``.

    Raises:
      InputError: if there is none.
    """
    path = workdir / CONFIG
    if not path.is_file():
        raise InputError(f"workdir {workdir} holds no run: there is no {path}")
    return ConfigDict(json.loads(path.read_text()))


def _check_same(stored: ConfigDict, resolved: dict, workdir: Path) -> None:
    before, now = (
        dict(_flatten({k: v for k, v in tree.items() if k not in FREE_SECTIONS}))
        for tree in (stored.to_dict(), resolved)
    )
    changed = [
        f"{key} is {before.get(key)!r} there and {now.get(key)!r} here"
        for key in sorted(before | now)
        if before.get(key) != now.get(key)
    ]
    if changed:
        raise InputError(
            f"workdir {workdir} holds a run of another config: {'; '.join(changed)}; "
            "use another workdir or the same config"
        )


def _flatten(tree: dict, prefix: str = "") -> list[tuple[str, Any]]:
    pairs = []
    for key, value in tree.items():
        name = f"{prefix}{key}"
        pairs += _flatten(value, f"{name}.") if isinstance(value, dict) else [(name, value)]
    return pairs
