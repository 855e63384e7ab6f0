"""The data of a run of detection: from its config to batches."""

import dataclasses

import numpy as np
from ml_collections import ConfigDict

from resnest_jax.config.detection import eval_sides, has_masks
from resnest_jax.data.batches import Batches, EvalBatches, LoaderOptions
from resnest_jax.data.decode import decode_sized
from resnest_jax.data.sources import scenes
from resnest_jax.data.sources.coco import KIND, BoxDataset, open_coco
from resnest_jax.errors import InputError, import_package
from resnest_jax.tasks.detection.canvases import (
    Canvases,
    check_canvas,
    make_canvases,
    view_canvases,
)
from resnest_jax.tasks.detection.transforms import (
    EvalTransform,
    TrainTransform,
    check_sides,
    check_sizes,
)
from resnest_jax.tasks.detection.views import ViewsTransform


def check_data(config: ConfigDict) -> None:
    """Raise InputError for a key of ``data`` or ``evaluation`` that is out of range."""
    data = config.data
    check_sizes(data.short_sides, data.short_side_sampling, data.long_side)
    if not 0 < data.crop <= 1:
        raise InputError(f"data.crop must be in (0, 1]; got {data.crop}")
    check_evaluation(config)


def check_evaluation(config: ConfigDict) -> None:
    """Raise InputError for a key of the evaluation that is out of range; it needs pycocotools."""
    import_package("pycocotools", "resnest_jax[detection]")
    data, limits = config.data, config.evaluation
    for canvas in data.canvases:
        check_canvas(canvas)
    if len(data.canvases) > 1 and not data.aspect_grouping:
        raise InputError(
            "data.aspect_grouping False needs one canvas for all images, or none to have it "
            f"derived; got data.canvases {data.canvases}"
        )
    if data.max_objects < 1:
        raise InputError(f"data.max_objects must be at least 1; got {data.max_objects}")
    short, longest = eval_sides(config)
    if not 0 < short <= longest:
        named = "data" if limits.long_side is None else "evaluation"
        raise InputError(
            f"evaluation.short_side must be from 1 to {named}.long_side {longest}; got {short}"
        )
    views = limits.view_sides, "view_long_side", limits.view_long_side
    check_sides("evaluation", "view_sides", *views)


def open_boxes(config: ConfigDict, *, training: bool = True) -> BoxDataset:
    """Open the data set that the config names, maybe without its training records.

    It has masks if the model has. Its notes say how many training images have too many objects.
    """
    built_in = config.dataset == scenes.NAME
    dataset = open_coco(
        f"{KIND}:{scenes.folder_with_objects()}" if built_in else config.dataset,
        train_split=config.train_split,
        eval_split=config.eval_split,
        max_unreadable=config.loader.max_unreadable,
        training=training,
        masks=has_masks(config),
    )
    counts, most = dataset.train.counts, config.data.max_objects
    if crowded := int(np.sum(counts > most)):
        line = (
            f"{crowded} of {len(counts)} training images have more than data.max_objects {most} "
            f"objects, {counts.max()} at most: each step trains on {most} of them at random"
        )
        return dataclasses.replace(dataset, notes=(*dataset.notes, line))
    return dataset


def make_batches(config: ConfigDict, dataset: BoxDataset, options: LoaderOptions) -> Batches:
    """Return the batches of a run; the images of each have one canvas.

    Raises:
      InputError: if the canvases of the config do not hold the images.
    """
    data = config.data
    train = make_canvases(
        dataset.train.sizes,
        max(data.short_sides),
        data.long_side,
        data.canvases,
        data.crop,
        wide_apart=data.aspect_grouping,
    )
    held_out = _eval_canvases(config, dataset)
    transform = TrainTransform(
        train,
        data.max_objects,
        data.short_sides,
        data.short_side_sampling,
        data.flip,
        has_masks(config),
    )
    return Batches(
        dataset,
        [(0, transform)],
        EvalTransform(held_out, data.max_objects),
        options,
        decode_sized,
        groups=(train.groups(dataset.train.sizes), held_out.groups(dataset.eval.sizes)),
    )


def make_eval_batches(
    config: ConfigDict, dataset: BoxDataset, options: LoaderOptions
) -> EvalBatches:
    """Return the evaluation batches of a run, as ``make_batches`` does."""
    canvases = _eval_canvases(config, dataset)
    transform = EvalTransform(canvases, config.data.max_objects)
    groups = canvases.groups(dataset.eval.sizes)
    return EvalBatches(dataset.eval, transform, options, decode_sized, groups)


def make_view_batches(
    config: ConfigDict, dataset: BoxDataset, options: LoaderOptions
) -> EvalBatches:
    """Return the batches of the multi-scale evaluation."""
    sizes, limits = dataset.eval.sizes, config.evaluation
    each = view_canvases(sizes, limits.view_sides, limits.view_long_side)
    chosen = np.stack([canvases.groups(sizes) for canvases in each], 1)
    groups = np.unique(chosen, axis=0, return_inverse=True)[1].ravel()
    return EvalBatches(dataset.eval, ViewsTransform(each), options, decode_sized, groups)


def _eval_canvases(config: ConfigDict, dataset: BoxDataset) -> Canvases:
    data = config.data
    return make_canvases(
        dataset.eval.sizes, *eval_sides(config), data.canvases, wide_apart=data.aspect_grouping
    )
