"""Build the parts of a segmentation run from a config."""

from collections.abc import Callable
from pathlib import Path
from typing import cast

import jax
from ml_collections import ConfigDict

from resnest_jax.config import model_fields
from resnest_jax.data.batches import Batches
from resnest_jax.data.label_maps import MaskDecoder
from resnest_jax.data.label_tables import IGNORED
from resnest_jax.data.sources.masks import MaskDataset, open_masks
from resnest_jax.errors import InputError
from resnest_jax.models.deeplab import HEADS, SegmentationModel
from resnest_jax.models.zoo import create_model
from resnest_jax.tasks.checks import (
    check_choice,
    check_model,
    check_parallel_and_pretrained,
    check_source,
)
from resnest_jax.tasks.class_weights import class_weights
from resnest_jax.tasks.loading import loader_options
from resnest_jax.tasks.parts import Parts
from resnest_jax.tasks.segmentation.task import Segmentation
from resnest_jax.tasks.segmentation.transforms import EvalTransform, TrainTransform
from resnest_jax.training.distributed import is_main
from resnest_jax.training.task import Variables
from resnest_jax.weights import segmenter

DATASETS = (
    "scenes, ade20k:PATH, cityscapes:PATH, pascal_context:PATH, voc:PATH, voc_aug:PATH or "
    "masks:PATH"
)
LAYERS = (
    "^backbone/stem/",
    *(f"^backbone/stage{stage}_" for stage in range(1, 5)),
    "^(head|auxiliary)/",
)
HEADS_ALONE = "^backbone/"  # freezes everything but the heads


def check(config: ConfigDict) -> None:
    """Raise InputError for a key that is out of range, if this can be seen without the data."""
    check_choice("model.name", config.model.name, HEADS)
    check_parallel_and_pretrained(config, config.model.backbone)
    check_model(config)
    train_transform(config)
    check_scales(config)
    groups = _norm_groups(config)
    images = config.batch_size // config.parallel.accumulate // groups
    if config.model.norm == "batch" and images < 2:
        raise InputError(
            f"batch_size {config.batch_size} gives {images} image to each of the {groups} groups "
            "of batch statistics; training needs at least 2, or model.norm 'frozen'"
        )


def check_scales(config: ConfigDict) -> None:
    """Raise InputError if the scales of the multi-scale evaluation are not positive numbers."""
    scales = config.evaluation.scales
    if not scales or not all(isinstance(s, int | float) and 0 < s <= 8 for s in scales):
        raise InputError(f"evaluation.scales must be numbers in (0, 8]; got {scales}")


def open_dataset(config: ConfigDict, *, training: bool = True) -> MaskDataset:
    """Open the data set that the config names, maybe without its training split."""
    return open_masks(
        config.dataset,
        train_split=config.train_split,
        eval_split=config.eval_split,
        max_unreadable=config.loader.max_unreadable,
        training=training,
    )


def build(
    config: ConfigDict, dataset: MaskDataset, steps_per_epoch: float, workdir: Path | None
) -> Parts:
    """Build the parts of the run.

    Args:
      config: complete and checked.
      workdir: directory for the list of unreadable records.

    Raises:
      InputError: if the config does not fit the data set.
    """
    del steps_per_epoch
    check_source(config, workdir)
    task = make_task(config, dataset)
    return Parts(
        task,
        Batches(
            dataset,
            [(0, train_transform(config, dataset.table.padding))],
            EvalTransform(config.crop_size),
            loader_options(config, workdir),
            MaskDecoder(dataset.table),
        ),
        pretrained=_pretrained(config, task.model),
        new_modules=segmenter.HEADS,
        norm_groups=_norm_groups(config),
        freeze=_freeze(config),
        layers=LAYERS,
        palette=dataset.table.palette,
    )


def make_task(config: ConfigDict, dataset: MaskDataset) -> Segmentation:
    """Return the task, with the model for the classes of the data set."""
    return Segmentation(
        make_model(config, len(dataset.class_names)),
        config.crop_size,
        dataset.class_names,
        config.loss.auxiliary_weight,
        class_weights(
            config.loss.class_weights, dataset.class_names, dataset.count_classes, "pixels"
        ),
        dataset.table.palette,
    )


def make_model(config: ConfigDict, num_classes: int) -> SegmentationModel:
    """Return the model of a config for a number of classes.

    Raises:
      InputError: if the config has another number.
    """
    fields = model_fields(config)
    if fields.setdefault("num_classes", num_classes) != num_classes:
        raise InputError(
            f"model.num_classes is {fields['num_classes']}, but {config.dataset} has "
            f"{num_classes} classes; leave it out"
        )
    return cast(SegmentationModel, create_model(**fields, norm_groups=_norm_groups(config)))


def train_transform(config: ConfigDict, padding: int = IGNORED) -> TrainTransform:
    """Return the transform of training images; ``padding`` is the label of pixels outside."""
    return TrainTransform(config.crop_size, **config.augment, padding=padding)


def _norm_groups(config: ConfigDict) -> int:
    return jax.device_count() if config.parallel.batch_norm == "device" else 1


def _pretrained(config: ConfigDict, model: SegmentationModel) -> Callable[[], Variables] | None:
    """Return a function that loads the initial weights; None for new ones."""
    section = config.pretrained
    if section.weights == "none":
        return None
    source = None if section.weights == "published" else section.weights

    def load() -> Variables:
        loaded = segmenter.load_segmenter(model, config.model.backbone, source, section.checkpoint)
        new = segmenter.missing_heads(model, loaded)
        if is_main():
            kept = ", ".join(sorted(loaded["params"]))
            print(f"pretrained.weights {section.weights}: {kept}; new: {', '.join(new) or 'none'}")
        return loaded

    return load


def _freeze(config: ConfigDict) -> str:
    if config.pretrained.train == "head":
        return HEADS_ALONE
    stages = config.model.frozen_stages
    return f"^backbone/(stem|stage[1-{stages}]_block\\d+)/" if stages else ""
