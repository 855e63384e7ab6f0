"""Build the parts of a detection run from a config."""

from functools import partial
from pathlib import Path
from typing import cast

from ml_collections import ConfigDict

from resnest_jax.data.sources.coco import BoxDataset
from resnest_jax.models.detection.rcnn import RCNN
from resnest_jax.models.zoo import RCNNS
from resnest_jax.tasks import backbone
from resnest_jax.tasks.checks import check_choice, check_source
from resnest_jax.tasks.detection import loading
from resnest_jax.tasks.detection.task import Detection
from resnest_jax.tasks.loading import loader_options
from resnest_jax.tasks.parts import Parts
from resnest_jax.weights.detector import heads, load_detector, missing_heads

DATASETS = "scenes or coco:PATH"
LAYERS = (*backbone.LAYERS, "^(?!backbone/)")  # the heads last
open_dataset = loading.open_boxes


def check(config: ConfigDict, groups: int) -> None:
    """Raise InputError for a key that is out of range, if this can be seen without the data."""
    check_choice("model.name", config.model.name, tuple(RCNNS))
    backbone.check_network(config, groups)
    loading.check_data(config)


def build(
    config: ConfigDict,
    dataset: BoxDataset,
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
    model = cast(RCNN, backbone.make_network(config, len(dataset.class_names), groups))
    load = partial(
        load_detector, model, config.model.backbone, checkpoint=config.pretrained.checkpoint
    )
    return Parts(
        Detection(model, dataset.truth),
        loading.make_batches(config, dataset, loader_options(config, workdir)),
        pretrained=backbone.initial_weights(config, load, partial(missing_heads, model)),
        new_modules=heads(model),
        freeze=backbone.frozen(config),
        layers=LAYERS,
    )
