"""Build a run from a config."""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import ModuleType

import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from resnest_jax.config import complete
from resnest_jax.errors import InputError
from resnest_jax.tasks.classification import recipe as classification
from resnest_jax.tasks.detection import recipe as detection
from resnest_jax.tasks.segmentation import recipe as segmentation
from resnest_jax.training.distributed import main_first
from resnest_jax.training.mesh import check_batch_size, make_mesh, platform_of
from resnest_jax.training.optimizer import make_optimizer, make_schedule
from resnest_jax.training.run import Run, TrainOptions
from resnest_jax.training.tracker import open_wandb

# A task's recipe has ``DATASETS``, in words, ``open_dataset(config)``, ``check(config, groups)``
# and ``build(config, dataset, steps_per_epoch, workdir, groups)``, which returns a ``Parts``.
# ``groups`` are the parts of a batch that have batch statistics of their own.
TASKS: dict[str, ModuleType] = {
    "classification": classification,
    "segmentation": segmentation,
    "detection": detection,
}


def build(
    config: ConfigDict,
    workdir: Path | None = None,
    *,
    training: bool = True,
    mesh: Mesh | None = None,
) -> Run:
    """Check a config and build its run, with its data set opened.

    Args:
      config: complete or not, see ``config.complete``.
      workdir: directory for the list of unreadable records; None: any such record is an error.
      training: the devices must divide the training batch.
      mesh: the devices to compile for; None: all devices of all processes.

    Raises:
      InputError: if a key is unknown, a value is out of range, or a file or data set is missing.
    """
    config = complete(config)
    if mesh is None:
        mesh = make_mesh()
    elif config.model.platform is None:
        config.model.platform = platform_of(mesh)
    task = TASKS[config.task]
    _check(config, task.DATASETS)
    if training:
        check_batch_size(config.batch_size, config.parallel.accumulate, mesh)
    groups = mesh.size if config.parallel.batch_norm == "device" else 1
    task.check(config, groups)  # first, since preparing a data set is slow
    with main_first():  # it may prepare the data set
        dataset = task.open_dataset(config)
    steps_per_epoch = len(dataset.train) / config.batch_size
    parts = task.build(config, dataset, steps_per_epoch, workdir, groups)
    options = _options(config, steps_per_epoch, groups, parts.freeze)
    schedule = _schedule(config, steps_per_epoch, options.total_steps)
    return Run(
        parts.task,
        parts.batches,
        _optimizer(config, schedule, options.freeze, parts.layers),
        schedule,
        options,
        mesh,
        pretrained=parts.pretrained,
        new_modules=parts.new_modules,
        notes=dataset.notes,
        palette=parts.palette,
        tracker=partial(open_wandb, config=config.to_dict()) if config.tracker == "wandb" else None,
    )


def _check(config: ConfigDict, datasets: str) -> None:
    """Raise InputError for a common key that is out of range.

    Args:
      datasets: what ``dataset`` may be, for the error.
    """
    if not config.dataset:
        raise InputError(f"dataset is missing; set it to {datasets}")
    if config.log_every_steps <= 0:
        raise InputError(f"log_every_steps must be positive; got {config.log_every_steps}")
    if not 0 <= config.optimizer.ema_decay < 1:
        raise InputError(f"optimizer.ema_decay must be in [0, 1); got {config.optimizer.ema_decay}")
    layer_decay = config.optimizer.layer_decay
    if not 0 < layer_decay <= 1:
        raise InputError(f"optimizer.layer_decay must be in (0, 1]; got {layer_decay}")
    if layer_decay < 1 and config.optimizer.lr_mults:
        raise InputError("optimizer.layer_decay and optimizer.lr_mults are both given; use one")
    if not all(isinstance(boundary, int | float) for boundary in config.optimizer.boundaries):
        raise InputError(f"optimizer.boundaries must be numbers; got {config.optimizer.boundaries}")
    if config.checkpoint.keep_last < 1:
        raise InputError(
            f"checkpoint.keep_last must be at least 1; got {config.checkpoint.keep_last}"
        )
    for field, value in (
        ("checkpoint.every_steps", config.checkpoint.every_steps),
        ("evaluation.batch_size", config.evaluation.batch_size),
        ("patience", config.patience),
        ("recompute_batch_norm", config.recompute_batch_norm),
    ):
        if value < 0:
            raise InputError(f"{field} must not be negative; got {value}")
    if config.recompute_batch_norm and config.model.norm != "batch":
        raise InputError(
            f"recompute_batch_norm {config.recompute_batch_norm} needs model.norm 'batch'; got "
            f"{config.model.norm!r}"
        )
    if config.recompute_batch_norm and config.patience:
        raise InputError(
            f"recompute_batch_norm {config.recompute_batch_norm} comes after the last step, but "
            f"patience {config.patience} may end the run before it; use one of them"
        )


def in_steps(name: str, epochs: float, steps: int, steps_per_epoch: float) -> int:
    """Return a length in steps: ``steps`` if positive, else that of ``epochs``.

    Raises:
      InputError: if one is negative or not finite, or both are 0.
    """
    if steps < 0 or not 0 <= epochs < math.inf or not (steps or epochs):
        by_steps, by_epochs = name.format("steps"), name.format("epochs")
        raise InputError(
            f"{by_epochs} must be positive, or {by_steps}, which takes precedence; got {by_epochs} "
            f"{epochs} and {by_steps} {steps}"
        )
    return steps or max(1, round(epochs * steps_per_epoch))


def _options(
    config: ConfigDict, steps_per_epoch: float, norm_groups: int, freeze: str
) -> TrainOptions:
    return TrainOptions(
        seed=config.seed,
        total_steps=in_steps("{}", config.epochs, config.steps, steps_per_epoch),
        steps_per_epoch=steps_per_epoch,
        batch_size=config.batch_size,
        log_every=config.log_every_steps,
        eval_every=in_steps(
            "eval_every_{}", config.eval_every_epochs, config.eval_every_steps, steps_per_epoch
        ),
        save_every=config.checkpoint.every_steps,
        patience=config.patience,
        ema_decay=config.optimizer.ema_decay,
        accumulate=config.parallel.accumulate,
        shard_optimizer=config.parallel.shard_optimizer,
        norm_groups=norm_groups,
        freeze="|".join(filter(None, (config.optimizer.freeze, freeze))),
        recompute_batch_norm=config.recompute_batch_norm,
    )


def _schedule(config: ConfigDict, steps_per_epoch: float, total_steps: int) -> optax.Schedule:
    section = config.optimizer
    if section.warmup_steps < 0 or not 0 <= section.warmup_epochs < math.inf:
        raise InputError(
            "optimizer.warmup_epochs and optimizer.warmup_steps must not be negative; got "
            f"{section.warmup_epochs} and {section.warmup_steps}"
        )
    warmup_steps = section.warmup_steps or round(section.warmup_epochs * steps_per_epoch)
    per_unit = 1 if config.steps else steps_per_epoch  # unit of the boundaries
    return make_schedule(
        kind=section.schedule,
        base_learning_rate=section.base_learning_rate,
        batch_size=config.batch_size,
        total_steps=total_steps,
        warmup_steps=warmup_steps,
        warmup_start=section.warmup_start,
        boundaries=[round(boundary * per_unit) for boundary in section.boundaries],
        factor=section.factor,
        power=section.power,
    )


def _optimizer(
    config: ConfigDict, schedule: optax.Schedule, freeze: str, layers: Sequence[str]
) -> optax.GradientTransformation:
    section = config.optimizer
    return make_optimizer(
        schedule,
        name=section.name,
        momentum=section.momentum,
        nesterov=section.nesterov,
        weight_decay=section.weight_decay,
        clip_norm=section.clip_norm,
        decay=section.decay,
        freeze=freeze,
        lr_mults=section.lr_mults or _layer_factors(section.layer_decay, layers),
    )


def _layer_factors(decay: float, layers: Sequence[str]) -> list[tuple[str, float]]:
    """Return ``lr_mults`` that fall from the last layer, whose factor is 1, to the first."""
    if decay == 1:
        return []
    return [(regex, decay**depth) for depth, regex in enumerate(reversed(layers))]
