"""Name what is on images: python -m resnest_jax.predict --model=resnest50 IMAGE_OR_FOLDER..."""

from absl import flags

from resnest_jax import cli
from resnest_jax.tasks.classification import predict

MODEL = flags.DEFINE_string(
    "model", None, "The model's name; a directory of weights knows its own."
)
WEIGHTS = flags.DEFINE_string(
    "weights",
    None,
    "A .safetensors or .pth file, or a directory, of a run too; left out, the published weights.",
)
IMAGE_SIZE = flags.DEFINE_integer(
    "image_size",
    None,
    "Side of the network's input; left out, that of the published test, or the run's.",
    lower_bound=32,
)
EXPLAIN = flags.DEFINE_string(
    "explain", None, "PNG to write: where the model looks, and its attention to the splits."
)


def main(argv: list[str]) -> int:
    """Predict what the flags and arguments name."""
    return predict.run(
        argv[1:],
        name=MODEL.value,
        weights=WEIGHTS.value,
        image_size=IMAGE_SIZE.value,
        explain_path=EXPLAIN.value,
    )


if __name__ == "__main__":
    cli.run(main, arguments=True)
