"""Build the parts of a classification run from a config."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from resnest_jax.data.batches import Batches
from resnest_jax.data.decode import decode_image
from resnest_jax.data.sources import Dataset
from resnest_jax.data.sources import open_dataset as open_source
from resnest_jax.errors import InputError
from resnest_jax.models.inputs import STATISTICS
from resnest_jax.models.resnest import MIN_SIZE
from resnest_jax.models.zoo import create_model
from resnest_jax.tasks.checks import (
    check_choice,
    check_model,
    check_parallel_and_pretrained,
    check_source,
    network_fields,
)
from resnest_jax.tasks.class_weights import class_weights
from resnest_jax.tasks.classification.mixing import Mixing
from resnest_jax.tasks.classification.multi_label import MultiLabel
from resnest_jax.tasks.classification.task import Classification
from resnest_jax.tasks.classification.transforms import EvalTransform, TrainTransform
from resnest_jax.tasks.loading import loader_options
from resnest_jax.tasks.parts import Parts
from resnest_jax.training.task import Variables
from resnest_jax.weights.pretrained import load_pretrained

DATASETS = "a TFDS name, folder:PATH or csv:PATH"
LAYERS = ("^stem/", *(f"^stage{stage}_" for stage in range(1, 5)), "^head/")
HEAD_ALONE = "^(?!head/)"  # freezes everything but the head


def check(config: ConfigDict, groups: int) -> None:
    """Raise InputError for a key that is out of range, if this can be seen without the data."""
    del groups
    check_parallel_and_pretrained(config, config.model.name)
    check_choice("channels", config.channels, tuple(STATISTICS))
    check_choice("sampling", config.sampling, ("uniform", "balanced"))
    if config.multi_label and config.sampling == "balanced":
        raise InputError("sampling 'balanced' needs one label per image; multi_label is True")
    if config.eval_image_size < MIN_SIZE:
        raise InputError(
            f"eval_image_size must be at least {MIN_SIZE}; got {config.eval_image_size}"
        )
    check_model(config)


def open_dataset(config: ConfigDict) -> Dataset:
    """Open the data set that the config names."""
    splits = {"train_split": config.train_split, "eval_split": config.eval_split}
    return open_source(config.dataset, multi_label=config.multi_label, **splits)


def build(
    config: ConfigDict,
    dataset: Dataset,
    steps_per_epoch: float,
    workdir: Path | None,
    groups: int,
) -> Parts:
    """Build the parts of the run.

    Args:
      config: complete and checked.
      workdir: directory for the list of unreadable records.
      groups: parts of a batch that have batch statistics of their own.

    Raises:
      InputError: if the config does not fit the data set.
    """
    check_source(config, workdir)
    fields = network_fields(config, len(dataset.class_names))
    fields["norm_groups"] = groups
    image_sizes = _image_sizes(config.image_size, steps_per_epoch)
    loss = config.loss.to_dict()
    loss["class_weights"] = class_weights(
        config.loss.class_weights, dataset.class_names, dataset.count_classes, "images"
    )
    task = (MultiLabel if config.multi_label else Classification)(
        create_model(**fields),
        fields["num_classes"],
        image_sizes[0][1],
        loss_name=loss.pop("name"),
        mixing=Mixing(**config.mix, groups=groups),
        channels=config.channels,
        **loss,
    )
    return Parts(
        task,
        _batches(config, dataset, image_sizes, workdir),
        pretrained=_pretrained(config.pretrained, fields | {"in_channels": config.channels}),
        freeze=_freeze(config),
        layers=LAYERS,
    )


def _image_sizes(sizes: Any, steps_per_epoch: float) -> tuple[tuple[int, int], ...]:
    """Return pairs (first step, side) of training images, from a side or pairs (epoch, side)."""
    pairs = ((0, sizes),) if isinstance(sizes, int) else sizes
    epochs = [pair[0] for pair in pairs if _is_pair(pair)]
    rising = epochs[:1] == [0] and epochs == sorted(set(epochs))
    if len(epochs) < len(pairs) or not rising or min(side for _, side in pairs) < MIN_SIZE:
        raise InputError(
            f"image_size must be a side of at least {MIN_SIZE} pixels, or pairs (epoch, side) from "
            f"epoch 0 on; got {sizes!r}"
        )
    return tuple((round(epoch * steps_per_epoch), side) for epoch, side in pairs)


def _is_pair(value: Any) -> bool:
    match value:
        case [int() | float(), int()]:
            return True
    return False


def _batches(
    config: ConfigDict,
    dataset: Dataset,
    image_sizes: tuple[tuple[int, int], ...],
    workdir: Path | None,
) -> Batches:
    augment = config.augment.to_dict()
    options = loader_options(
        config,
        workdir,
        repeats=augment.pop("repeats"),
        spread_repeats=augment.pop("spread_repeats"),
        balanced=config.sampling == "balanced",
    )
    label_shape = (len(dataset.class_names),) if config.multi_label else ()
    transforms = [
        (step, TrainTransform(size, channels=config.channels, label_shape=label_shape, **augment))
        for step, size in image_sizes
    ]
    eval_transform = EvalTransform(config.eval_image_size, config.eval_crop)
    decode = partial(decode_image, channels=config.channels)
    return Batches(dataset, transforms, eval_transform, options, decode)


def _pretrained(section: ConfigDict, fields: dict[str, Any]) -> Callable[[], Variables] | None:
    """Return a function that loads the initial weights; None for new ones.

    ``fields`` are arguments of ``load_pretrained``.
    """
    if section.weights == "none":
        return None
    source = None if section.weights == "published" else section.weights
    others = {name: value for name, value in fields.items() if name != "name"}
    others["checkpoint"] = section.checkpoint
    return lambda: load_pretrained(fields["name"], source, **others)[1]


def _freeze(config: ConfigDict) -> str:
    if config.pretrained.train == "head":
        return HEAD_ALONE
    stages = config.model.frozen_stages
    return f"^(stem|stage[1-{stages}]_block\\d+)/" if stages else ""
