"""What a config describes: its keys, and the run built from them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from resnest_jax.data.batches import Batches, LoaderOptions
from resnest_jax.data.sources import Dataset, open_dataset
from resnest_jax.errors import InputError
from resnest_jax.models.resnest import MIN_SIZE
from resnest_jax.models.zoo import create_model
from resnest_jax.tasks.classification.mixing import Mixing
from resnest_jax.tasks.classification.task import Classification
from resnest_jax.tasks.classification.transforms import EvalTransform, TrainTransform
from resnest_jax.training.checkpoints import latest_step
from resnest_jax.training.distributed import is_main, main_first
from resnest_jax.training.mesh import check_batch_size
from resnest_jax.training.metric_writer import write_json
from resnest_jax.training.optimizer import make_optimizer, make_schedule
from resnest_jax.training.run import Run, TrainOptions
from resnest_jax.weights.pretrained import load_pretrained

# Keys of every recipe; those with a tuple are sections of these keys (None: any).
KEYS: dict[str, tuple[str, ...] | None] = {
    "seed": (),
    "model": None,  # name, and fields of the model
    "pretrained": ("weights", "train"),
    "dataset": (),
    "train_split": (),
    "eval_split": (),
    "image_size": (),
    "eval_image_size": (),
    "eval_crop": (),
    "batch_size": (),
    "epochs": (),
    "loss": ("name", "label_smoothing", "smooth_over"),
    "augment": (
        "crop",
        "shift",
        "flip",
        "policy",
        "policy_layers",
        "policy_magnitude",
        "jitter",
        "lighting",
        "erasing",
        "repeats",
    ),
    "mix": ("mixup", "cutmix", "per_sample"),
    "optimizer": (
        "name",
        "base_learning_rate",
        "warmup_epochs",
        "momentum",
        "nesterov",
        "weight_decay",
        "ema_decay",
    ),
    "parallel": ("batch_norm", "accumulate", "shard_optimizer"),
    "loader": ("workers", "max_unreadable"),
    "log_every_steps": (),
    "eval_every_epochs": (),
    "checkpoint": ("keep_last", "every_steps"),
}
# Sections that change no result, so that a run may go on with other values.
FREE_SECTIONS = ("loader", "checkpoint")
CONFIG = "config.json"


def build(config: ConfigDict, workdir: Path | None = None) -> Run:
    """Check the config and open everything that it names.

    Args:
      workdir: where the records that cannot be read are written down; None is nowhere.

    Raises:
      InputError: if a key is missing, unknown or out of range, or what it names is not there.
    """
    check_keys(config)
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
    model_fields = _model_fields(config)
    create_model(**model_fields)  # before a data set is prepared for nothing
    with main_first():  # which may have to prepare it
        opened = open_dataset(
            config.dataset, train_split=config.train_split, eval_split=config.eval_split
        )
    num_classes = len(opened.class_names)
    if model_fields.setdefault("num_classes", num_classes) != num_classes:
        raise InputError(
            f"model.num_classes is {model_fields['num_classes']}, but {config.dataset} has "
            f"{num_classes} classes; leave it out"
        )
    steps_per_epoch = len(opened.train) / config.batch_size
    image_sizes = _image_sizes(config, steps_per_epoch)
    batches = _batches(config, opened, image_sizes, workdir)
    optimizer, schedule = _optimizer(config, steps_per_epoch)
    return Run(
        _task(config, model_fields, image_sizes),
        batches,
        optimizer,
        schedule,
        _options(config, steps_per_epoch, model_fields["norm_groups"]),
        pretrained=_pretrained(config, model_fields),
    )


def _model_fields(config: ConfigDict) -> dict:
    """What ``create_model`` takes: the section, and statistics of the batch norms' groups."""
    fields = config.model.to_dict()
    if "norm_groups" in fields:
        raise InputError("model.norm_groups follows from parallel.batch_norm; leave it out")
    if config.pretrained.train == "head" and fields.get("norm") != "frozen":
        raise InputError("pretrained.train 'head' needs model.norm 'frozen'")
    groups = jax.device_count() if config.parallel.batch_norm == "device" else 1
    return fields | {"norm_groups": groups}


def _image_sizes(config: ConfigDict, steps_per_epoch: float) -> tuple[tuple[int, int], ...]:
    """(first step, side) of the training images, from a side or from pairs (epoch, side)."""
    sizes = config.image_size
    pairs = [(0, sizes)] if isinstance(sizes, int) else [tuple(pair) for pair in sizes]
    epochs = [epoch for epoch, _ in pairs]
    rising = epochs[:1] == [0] and epochs == sorted(set(epochs))
    if not rising or min(side for _, side in pairs) < MIN_SIZE:
        raise InputError(
            f"image_size must be a side of at least {MIN_SIZE} pixels, or pairs (epoch, side) from "
            f"epoch 0 on; {sizes=}"
        )
    return tuple((round(epoch * steps_per_epoch), side) for epoch, side in pairs)


def _batches(
    config: ConfigDict,
    dataset: Dataset,
    image_sizes: tuple[tuple[int, int], ...],
    workdir: Path | None,
) -> Batches:
    augment = config.augment.to_dict()
    options = LoaderOptions(
        batch_size=config.batch_size,
        eval_batch_size=config.batch_size // config.parallel.accumulate,  # no more at a time
        seed=config.seed,
        repeats=augment.pop("repeats"),
        unreadable_log=workdir and workdir / f"unreadable_{jax.process_index()}.txt",
        **config.loader,
    )
    transforms = [(step, TrainTransform(size, **augment)) for step, size in image_sizes]
    eval_transform = EvalTransform(config.eval_image_size, config.eval_crop)
    return Batches(dataset, transforms, eval_transform, options)


def _task(config: ConfigDict, model_fields: dict, image_sizes) -> Classification:
    loss = config.loss.to_dict()
    return Classification(
        create_model(**model_fields),
        model_fields["num_classes"],
        image_sizes[0][1],
        loss_name=loss.pop("name"),
        mixing=Mixing(**config.mix, groups=model_fields["norm_groups"]),
        **loss,
    )


def _optimizer(config: ConfigDict, steps_per_epoch: float):
    section = config.optimizer.to_dict()
    warmup_epochs = section.pop("warmup_epochs")
    if not 0 <= warmup_epochs < config.epochs:
        raise InputError(
            f"optimizer.warmup_epochs must be in [0, epochs = {config.epochs}); got {warmup_epochs}"
        )
    schedule = make_schedule(
        base_learning_rate=section.pop("base_learning_rate"),
        batch_size=config.batch_size,
        total_steps=max(1, round(config.epochs * steps_per_epoch)),
        warmup_steps=round(warmup_epochs * steps_per_epoch),
    )
    if not 0 <= section.pop("ema_decay") < 1:
        raise InputError(f"optimizer.ema_decay must be in [0, 1); got {config.optimizer.ema_decay}")
    freeze = "^(?!head/)" if config.pretrained.train == "head" else ""
    return make_optimizer(schedule, **section, freeze=freeze), schedule


def _options(config: ConfigDict, steps_per_epoch: float, norm_groups: int) -> TrainOptions:
    if config.checkpoint.every_steps < 0:
        raise InputError(
            f"checkpoint.every_steps must not be negative; got {config.checkpoint.every_steps}"
        )
    return TrainOptions(
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
        norm_groups=norm_groups,
        freeze="^(?!head/)" if config.pretrained.train == "head" else "",
    )


def _pretrained(config: ConfigDict, model_fields: dict) -> Callable[[], dict] | None:
    """What loads the weights to start from."""
    weights = config.pretrained.weights
    if weights == "none":
        return None
    fields = dict(model_fields)
    name = fields.pop("name")
    source = None if weights == "published" else weights
    return lambda: load_pretrained(name, source, **fields)[1]


def _check_choice(field: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(f"{field} must be one of {choices}; got {value!r}")


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
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        check_workdir(workdir, config)
        if is_main():
            write_json(workdir / CONFIG, _resolved(config))
    except OSError as error:
        raise InputError(f"workdir {workdir} cannot be written: {error.strerror}") from None


def check_workdir(workdir: Path, config: ConfigDict) -> None:
    """Raise InputError if the directory holds checkpoints of another config."""
    if latest_step(workdir) is not None:
        _check_same(load_config(workdir), _resolved(config), workdir)


def _resolved(config: ConfigDict) -> dict:
    """The config as JSON gives it back."""
    return json.loads(json.dumps(config.to_dict()))


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
