"""Classify or segment images, or detect objects in them.

python -m resnest_jax.predict --model=resnest50 IMAGE_OR_FOLDER...
python -m resnest_jax.predict --weights=runs/ade20k --output=DIR IMAGE_OR_FOLDER...
python -m resnest_jax.predict --weights=deeplab.pth --output=DIR IMAGE_OR_FOLDER...
python -m resnest_jax.predict --weights=runs/coco --output=DIR IMAGE_OR_FOLDER...
python -m resnest_jax.predict --weights=faster_rcnn.pth --output=DIR IMAGE_OR_FOLDER...
"""

from pathlib import Path

from absl import flags

from resnest_jax import arguments, cli
from resnest_jax.errors import InputError
from resnest_jax.tasks.classification import predict
from resnest_jax.tasks.detection import predict as detection
from resnest_jax.tasks.segmentation import predict as segmentation
from resnest_jax.weights.detection import load_weights as load_detector
from resnest_jax.weights.recognition import find_task
from resnest_jax.weights.segmentation import load_weights

FLAGS = flags.FlagValues()
MODEL = arguments.define_model(FLAGS)
BACKBONE = arguments.define_backbone(FLAGS)
WEIGHTS = arguments.define_weights(FLAGS)
CHECKPOINT = arguments.define_checkpoint(FLAGS)
IMAGE_SIZE = arguments.define_image_size(FLAGS)
EXPLAIN = flags.DEFINE_string(
    "explain",
    None,
    "PNG to write: where the model looks, and its attention to the splits.",
    flag_values=FLAGS,
)
TTA, TTA_SIZES = arguments.define_tta(FLAGS)
PREDICTIONS = arguments.define_predictions(FLAGS)
EMBEDDINGS = flags.DEFINE_string(
    "embeddings",
    None,
    "NPZ to write: files, and embeddings, the pooled features before the head.",
    flag_values=FLAGS,
)
THRESHOLD = flags.DEFINE_float(
    "threshold",
    predict.THRESHOLD,
    "Least probability of the classes that are printed, for a run with multi_label; of "
    "detection of the boxes that are drawn and counted.",
    lower_bound=0.0,
    upper_bound=1.0,
    flag_values=FLAGS,
)
OUTPUT = flags.DEFINE_string(
    "output",
    None,
    "Segmentation: directory for the label maps, overlays and the shares of the classes; "
    "detection: for pictures with boxes and masks, label maps of the masks, and detections.json.",
    flag_values=FLAGS,
)
MULTI_SCALE = flags.DEFINE_bool(
    "multi_scale",
    False,
    "Segmentation and detection: at several scales, mirrored too if training was: better and "
    "slower.",
    flag_values=FLAGS,
)


def main(argv: list[str]) -> int:
    """Classify or segment the images, or detect objects in them."""
    task = find_task(MODEL.value, WEIGHTS.value)
    if task != "classification":
        return {"segmentation": _segment, "detection": _detect}[task](argv[1:])
    arguments.refuse("classification", BACKBONE, OUTPUT, MULTI_SCALE)
    return predict.run(
        argv[1:],
        name=MODEL.value,
        weights=WEIGHTS.value,
        checkpoint=CHECKPOINT.value,
        sizes=arguments.sizes(IMAGE_SIZE, TTA_SIZES),
        tta=tuple(TTA.value),
        outputs=predict.Outputs(
            arguments.optional(arguments.output_path, EXPLAIN),
            arguments.optional(arguments.output_path, PREDICTIONS),
            arguments.optional(arguments.output_path, EMBEDDINGS),
        ),
        threshold=THRESHOLD.value,
    )


def _segment(files: list[str]) -> int:
    others = (IMAGE_SIZE, EXPLAIN, TTA, TTA_SIZES, PREDICTIONS, EMBEDDINGS, THRESHOLD)
    arguments.refuse("segmentation", *others)
    output = _output_of("segmentation")
    segmenter = load_weights(MODEL.value, WEIGHTS.value, CHECKPOINT.value, backbone=BACKBONE.value)
    return segmentation.run(segmenter, files, output, multi_scale=MULTI_SCALE.value)


def _detect(files: list[str]) -> int:
    others = (IMAGE_SIZE, EXPLAIN, TTA, TTA_SIZES, PREDICTIONS, EMBEDDINGS)
    arguments.refuse("detection", *others)
    output = _output_of("detection")
    detector = load_detector(MODEL.value, WEIGHTS.value, CHECKPOINT.value, backbone=BACKBONE.value)
    return detection.run(detector, files, output, THRESHOLD.value, multi_scale=MULTI_SCALE.value)


def _output_of(task: str) -> Path:
    output = arguments.optional(arguments.local_path, OUTPUT)
    if output is None:
        raise InputError(f"{task} writes pictures: give --output=DIRECTORY")
    return output


if __name__ == "__main__":
    cli.run(main, FLAGS, arguments=True)
