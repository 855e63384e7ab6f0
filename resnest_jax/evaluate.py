"""Evaluate a run, or any weights on any labelled images.

    python -m resnest_jax.evaluate --workdir=runs/digits --checkpoint=best
    python -m resnest_jax.evaluate --model=resnest50 --dataset=folder:imagenet/val
    python -m resnest_jax.evaluate --workdir=runs/ade20k --multi_scale --output=runs/ade20k
    python -m resnest_jax.evaluate --weights=deeplab.pth --dataset=ade20k:PATH --multi_scale
    python -m resnest_jax.evaluate --workdir=runs/coco --output=runs/coco [--multi_scale]
    python -m resnest_jax.evaluate --weights=faster_rcnn.pth --dataset=coco:PATH

A run is evaluated as in training, and other weights by the test of the published model: its crop
and size. Classes are matched by name; those of segmentation and detection must be the same. The
figures are printed as JSON; published_top1 is beside them where the data has ImageNet's classes.
"""

import json
from collections.abc import Callable
from typing import Any

from absl import flags

from resnest_jax import arguments, cli
from resnest_jax.errors import InputError
from resnest_jax.tasks.classification import evaluate
from resnest_jax.tasks.detection import evaluate as detection
from resnest_jax.tasks.evaluation import Options
from resnest_jax.tasks.segmentation import evaluate as segmentation
from resnest_jax.training import distributed
from resnest_jax.weights.recognition import LOADERS, find_task

FLAGS = flags.FlagValues()
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Directory of a run; the same as --weights=DIR.", flag_values=FLAGS
)
MODEL = arguments.define_model(FLAGS)
BACKBONE = arguments.define_backbone(FLAGS)
WEIGHTS = arguments.define_weights(FLAGS)
CHECKPOINT = arguments.define_checkpoint(FLAGS)
DATASET = flags.DEFINE_string(
    "dataset",
    None,
    "folder:PATH or a name of TFDS; of segmentation masks:PATH, ade20k:PATH or another; of "
    "detection coco:PATH; default: that of the run.",
    flag_values=FLAGS,
)
SPLIT = flags.DEFINE_string(
    "split",
    "auto",
    "Split of the data set; auto: that of the run's evaluation, else validation, val or test, or "
    "all of a folder without splits. The folder itself is '.'.",
    flag_values=FLAGS,
)
IMAGE_SIZE = arguments.define_image_size(FLAGS)
BATCH_SIZE = flags.DEFINE_integer(
    "batch_size",
    None,
    "Images per step, of segmentation with --multi_scale windows; default: those of the run, or "
    "64, of segmentation and detection 16; with --multi_scale 4 windows or 1 image per device.",
    lower_bound=1,
    flag_values=FLAGS,
)
TTA, TTA_SIZES = arguments.define_tta(FLAGS)
PREDICTIONS = arguments.define_predictions(FLAGS)
OUTPUT = flags.DEFINE_string(
    "output",
    None,
    "Directory for per_class.csv, confusion.csv and confusion.png (segmentation: per_class.png; "
    "detection: per_class.csv and results.json, in COCO's form); that of the run will do.",
    flag_values=FLAGS,
)
MULTI_SCALE = flags.DEFINE_bool(
    "multi_scale",
    False,
    "At several scales: segmentation in sliding windows, as published scores; detection with the "
    "detections of all scales united.",
    flag_values=FLAGS,
)
_EVALUATIONS: dict[str, Callable[..., dict[str, Any]]] = {
    "segmentation": segmentation.run,
    "detection": detection.run,
}


def main(_: list[str]) -> None:
    """Evaluate the weights."""
    distributed.start()
    if WORKDIR.value is not None and WEIGHTS.value is not None:
        raise InputError("--workdir and --weights are both given; one of them names the run")
    if WORKDIR.value is None and WEIGHTS.value is None and MODEL.value is None:
        raise InputError("give --workdir=RUN, or --model=NAME, or --weights=FILE_OR_DIRECTORY")
    workdir = arguments.optional(arguments.local_path, WORKDIR)
    weights = WEIGHTS.value if workdir is None else str(workdir)
    task = find_task(MODEL.value, weights)
    results = _classification(weights) if task == "classification" else _other(task, weights)
    if distributed.is_main():
        print(json.dumps(results, indent=2))


def _other(task: str, weights: str | None) -> dict[str, Any]:
    """Evaluate a network on a backbone."""
    arguments.refuse(task, IMAGE_SIZE, TTA, TTA_SIZES, PREDICTIONS)
    options = Options(
        dataset=DATASET.value,
        split=SPLIT.value,
        batch_size=BATCH_SIZE.value,
        multi_scale=MULTI_SCALE.value,
        output=arguments.optional(arguments.local_path, OUTPUT),
    )
    network = LOADERS[task](MODEL.value, weights, CHECKPOINT.value, backbone=BACKBONE.value)
    return _EVALUATIONS[task](network, options)


def _classification(weights: str | None) -> dict[str, Any]:
    arguments.refuse("classification", BACKBONE, MULTI_SCALE)
    options = evaluate.Options(
        dataset=DATASET.value,
        split=SPLIT.value,
        sizes=arguments.sizes(IMAGE_SIZE, TTA_SIZES),
        tta=tuple(TTA.value),
        batch_size=BATCH_SIZE.value,
        output=arguments.optional(arguments.local_path, OUTPUT),
        predictions=arguments.optional(arguments.output_path, PREDICTIONS),
    )
    return evaluate.run(MODEL.value, weights, CHECKPOINT.value, options)


if __name__ == "__main__":
    cli.run(main, FLAGS)
