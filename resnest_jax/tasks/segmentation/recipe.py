"""Build the parts of a segmentation run from a config."""

from functools import partial
from pathlib import Path
from typing import cast

from ml_collections import ConfigDict

from resnest_jax.data.batches import Batches
from resnest_jax.data.label_maps import MaskDecoder
from resnest_jax.data.label_tables import IGNORED
from resnest_jax.data.sources.masks import MaskDataset, open_masks
from resnest_jax.errors import InputError
from resnest_jax.models.deeplab import HEADS, SegmentationModel
from resnest_jax.tasks import backbone
from resnest_jax.tasks.checks import check_choice, check_source
from resnest_jax.tasks.class_weights import class_weights
from resnest_jax.tasks.loading import loader_options
from resnest_jax.tasks.parts import Parts
from resnest_jax.tasks.segmentation.task import Segmentation
from resnest_jax.tasks.segmentation.transforms import EvalTransform, TrainTransform
from resnest_jax.weights import segmenter

DATASETS = (
    "scenes, ade20k:PATH, cityscapes:PATH, pascal_context:PATH, voc:PATH, voc_aug:PATH or "
    "masks:PATH"
)
LAYERS = (*backbone.LAYERS, "^(head|auxiliary)/")


def check(config: ConfigDict, groups: int) -> None:
    """Raise InputError for a key that is out of range, if this can be seen without the data."""
    check_choice("model.name", config.model.name, HEADS)
    backbone.check_network(config, groups)
    train_transform(config)
    check_scales(config)


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
    config: ConfigDict,
    dataset: MaskDataset,
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
    del steps_per_epoch
    check_source(config, workdir)
    task = make_task(config, dataset, groups)
    load = partial(
        segmenter.load_segmenter,
        task.model,
        config.model.backbone,
        checkpoint=config.pretrained.checkpoint,
    )
    missing = partial(segmenter.missing_heads, task.model)
    return Parts(
        task,
        Batches(
            dataset,
            [(0, train_transform(config, dataset.table.padding))],
            EvalTransform(config.crop_size),
            loader_options(config, workdir),
            MaskDecoder(dataset.table),
        ),
        pretrained=backbone.initial_weights(config, load, missing),
        new_modules=segmenter.HEADS,
        freeze=backbone.frozen(config),
        layers=LAYERS,
        palette=dataset.table.palette,
    )


def make_task(config: ConfigDict, dataset: MaskDataset, groups: int) -> Segmentation:
    """Return the task, with the model for the classes of the data set."""
    return Segmentation(
        make_model(config, len(dataset.class_names), groups),
        config.crop_size,
        dataset.class_names,
        config.loss.auxiliary_weight,
        class_weights(
            config.loss.class_weights, dataset.class_names, dataset.count_classes, "pixels"
        ),
        dataset.table.palette,
    )


def make_model(config: ConfigDict, num_classes: int, groups: int) -> SegmentationModel:
    """Return the model of a config, see ``backbone.make_network``."""
    return cast(SegmentationModel, backbone.make_network(config, num_classes, groups))


def train_transform(config: ConfigDict, padding: int = IGNORED) -> TrainTransform:
    """Return the transform of training images; ``padding`` is the label of pixels outside."""
    return TrainTransform(config.crop_size, **config.augment, padding=padding)
