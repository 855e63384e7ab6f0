"""Classify images: python -m resnest_jax.predict --model=resnest50 IMAGE_OR_FOLDER..."""

from absl import flags

from resnest_jax import cli
from resnest_jax.models.resnest import MIN_SIZE
from resnest_jax.tasks.classification import predict

FLAGS = flags.FlagValues()
MODEL = flags.DEFINE_string(
    "model", None, "Name of the model; a directory of weights holds it.", flag_values=FLAGS
)
WEIGHTS = flags.DEFINE_string(
    "weights",
    None,
    "File of weights, or directory of a run or of weights; default: the published weights.",
    flag_values=FLAGS,
)
CHECKPOINT = cli.define_checkpoint(FLAGS)
IMAGE_SIZE = flags.DEFINE_integer(
    "image_size",
    None,
    "Side of the network's input; default: that of the published test, or of the run.",
    lower_bound=MIN_SIZE,
    flag_values=FLAGS,
)
EXPLAIN = flags.DEFINE_string(
    "explain",
    None,
    "PNG to write: where the model looks, and its attention to the splits.",
    flag_values=FLAGS,
)
TTA, TTA_SIZES = cli.define_tta(FLAGS)
PREDICTIONS = cli.define_predictions(FLAGS)
EMBEDDINGS = flags.DEFINE_string(
    "embeddings",
    None,
    "NPZ to write: files, and embeddings, the pooled features before the head.",
    flag_values=FLAGS,
)
THRESHOLD = flags.DEFINE_float(
    "threshold",
    predict.THRESHOLD,
    "Least probability of the classes that are printed, for a run with multi_label.",
    lower_bound=0.0,
    upper_bound=1.0,
    flag_values=FLAGS,
)


def main(argv: list[str]) -> int:
    """Classify the images."""
    return predict.run(
        argv[1:],
        name=MODEL.value,
        weights=WEIGHTS.value,
        checkpoint=CHECKPOINT.value,
        sizes=cli.sizes(IMAGE_SIZE, TTA_SIZES),
        tta=tuple(TTA.value),
        outputs=predict.Outputs(
            cli.optional(cli.output_path, EXPLAIN),
            cli.optional(cli.output_path, PREDICTIONS),
            cli.optional(cli.output_path, EMBEDDINGS),
        ),
        threshold=THRESHOLD.value,
    )


if __name__ == "__main__":
    cli.run(main, FLAGS, arguments=True)
