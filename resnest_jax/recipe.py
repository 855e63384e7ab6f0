"""Build the run that a config describes."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import optax
from ml_collections import ConfigDict

from resnest_jax.config import complete, model_fields
from resnest_jax.data.batches import ImageBatches
from resnest_jax.data.sources import open_dataset
from resnest_jax.errors import InputError
from resnest_jax.models.resnest import MIN_SIZE
from resnest_jax.models.zoo import create_model
from resnest_jax.pretrained import load_pretrained
from resnest_jax.tasks.classification import Classification
from resnest_jax.tasks.mixing import Mixing
from resnest_jax.training.mesh import check_batch_size
from resnest_jax.training.optimizer import make_optimizer, make_schedule, only_below
from resnest_jax.training.processes import main_first
from resnest_jax.training.programs import Plan


class Run(NamedTuple):
    """A run, ready to start.

    ``pretrained`` loads the variables that it starts from, None for new ones.
    """

    task: Classification
    batches: ImageBatches
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    plan: Plan
    pretrained: Callable[[], dict] | None


def build(config: ConfigDict, workdir: Path | None = None) -> Run:
    """Check the config and open everything that it names.

    Args:
      config: complete, or the keys that differ from the defaults.
      workdir: where the records that cannot be read are written down; None is nowhere.

    Raises:
      InputError: if a key is unknown or out of range, or what it names is not there.
    """
    config = complete(config)
    for key in ("epochs", "log_every_steps", "eval_every_epochs"):
        if config[key] <= 0:
            raise InputError(f"{key} must be positive; got {config[key]}")
    if config.eval_image_size < MIN_SIZE:
        raise InputError(
            f"eval_image_size must be at least {MIN_SIZE}; got {config.eval_image_size}"
        )
    _check_choice("parallel.batch_norm", config.parallel.batch_norm, ("global", "device"))
    _check_choice("pretrained.train", config.pretrained.train, ("all", "head"))
    check_batch_size(config.batch_size, config.parallel.accumulate)
    fields = _model_fields(config)
    create_model(**fields)  # before a data set is prepared for nothing
    with main_first():  # which may have to prepare it
        opened = open_dataset(
            config.dataset, train_split=config.train_split, eval_split=config.eval_split
        )
    num_classes = len(opened.class_names)
    if fields.setdefault("num_classes", num_classes) != num_classes:
        raise InputError(
            f"model.num_classes is {fields['num_classes']}, but {config.dataset} has "
            f"{num_classes} classes; leave it out"
        )
    steps_per_epoch = len(opened.train) / config.batch_size
    image_sizes = _image_sizes(config, steps_per_epoch)
    batches = ImageBatches(
        opened,
        image_sizes=image_sizes,
        eval_image_size=config.eval_image_size,
        eval_crop=config.eval_crop,
        batch_size=config.batch_size,
        eval_batch_size=config.batch_size // config.parallel.accumulate,  # no more at a time
        seed=config.seed,
        unreadable_log=workdir and workdir / f"unreadable_{jax.process_index()}.txt",
        **config.loader,
        **config.augment,
    )
    optimizer, schedule = _optimizer(config, steps_per_epoch)
    return Run(
        _task(config, fields, image_sizes),
        batches,
        optimizer,
        schedule,
        _plan(config, steps_per_epoch, fields["norm_groups"]),
        _pretrained(config, fields),
    )


def _model_fields(config: ConfigDict) -> dict:
    """What ``create_model`` takes: the section, and statistics of the batch norms' groups."""
    if config.pretrained.train == "head" and config.model.norm != "frozen":
        raise InputError("pretrained.train 'head' needs model.norm 'frozen'")
    groups = jax.device_count() if config.parallel.batch_norm == "device" else 1
    return model_fields(config) | {"norm_groups": groups}


def _image_sizes(config: ConfigDict, steps_per_epoch: float) -> tuple[tuple[int, int], ...]:
    """(first step, side) of the training images, from a side or from pairs (epoch, side)."""
    sizes = config.image_size
    pairs = ((0, sizes),) if isinstance(sizes, int) else sizes
    are_pairs = all(isinstance(pair, tuple) and len(pair) == 2 for pair in pairs)
    numbers = are_pairs and all(isinstance(n, int | float) for pair in pairs for n in pair)
    epochs = [epoch for epoch, _ in pairs] if numbers else []
    rising = epochs[:1] == [0] and epochs == sorted(set(epochs))
    if not rising or min(side for _, side in pairs) < MIN_SIZE:
        raise InputError(
            f"image_size must be a side of at least {MIN_SIZE} pixels, or pairs (epoch, side) from "
            f"epoch 0 on; {sizes=}"
        )
    return tuple((round(epoch * steps_per_epoch), side) for epoch, side in pairs)


def _task(config: ConfigDict, fields: dict, image_sizes) -> Classification:
    loss = config.loss.to_dict()
    return Classification(
        create_model(**fields),
        fields["num_classes"],
        image_sizes[0][1],
        loss=loss.pop("name"),
        mixing=Mixing(**config.mix, groups=fields["norm_groups"]),
        **loss,
    )


def _optimizer(config: ConfigDict, steps_per_epoch: float):
    section = config.optimizer
    schedule = make_schedule(
        base_learning_rate=section.base_learning_rate,
        warmup_epochs=section.warmup_epochs,
        epochs=config.epochs,
        batch_size=config.batch_size,
        steps_per_epoch=steps_per_epoch,
    )
    if not 0 <= section.ema_decay < 1:
        raise InputError(f"optimizer.ema_decay must be in [0, 1); got {section.ema_decay}")
    optimizer = make_optimizer(
        schedule,
        name=section.name,
        momentum=section.momentum,
        nesterov=section.nesterov,
        weight_decay=section.weight_decay,
    )
    if config.pretrained.train == "head":
        optimizer = only_below(optimizer, "head")
    return optimizer, schedule


def _plan(config: ConfigDict, steps_per_epoch: float, groups: int) -> Plan:
    if config.checkpoint.every_steps < 0:
        raise InputError(
            f"checkpoint.every_steps must not be negative; got {config.checkpoint.every_steps}"
        )
    return Plan(
        seed=config.seed,
        total_steps=max(1, round(config.epochs * steps_per_epoch)),
        steps_per_epoch=steps_per_epoch,
        batch_size=config.batch_size,
        log_every=config.log_every_steps,
        eval_every=max(1, round(config.eval_every_epochs * steps_per_epoch)),
        save_every=config.checkpoint.every_steps,
        ema_decay=config.optimizer.ema_decay,
        accumulate=config.parallel.accumulate,
        shard_optimizer=config.parallel.shard_optimizer,
        groups=groups,
    )


def _pretrained(config: ConfigDict, fields: dict) -> Callable[[], dict] | None:
    """What loads the weights to start from."""
    weights = config.pretrained.weights
    if weights == "none":
        return None
    fields = dict(fields)
    name = fields.pop("name")
    source = None if weights == "published" else weights
    return lambda: load_pretrained(name, source, **fields)[1]


def _check_choice(field: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(f"{field} must be one of {choices}; got {value!r}")
