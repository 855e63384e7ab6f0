"""Convert weights between torch files and directories of weights.

    python -m resnest_jax.convert --model=resnest50 --input=resnest50-528c19ca.pth --output=weights
    python -m resnest_jax.convert --input=runs/digits --output=digits.safetensors

The input is a .safetensors, .pth or .pt file, the workdir of a run (its last checkpoint) or a
directory that this command wrote; a directory holds the name of its model. The output is such a
file, or without a suffix such a directory: model.json and an Orbax checkpoint of params and
batch_stats. ``resnest_jax.load_pretrained`` reads all of them.
"""

from absl import flags

from resnest_jax import cli
from resnest_jax.weights.pretrained import convert

FLAGS = flags.FlagValues()
MODEL = flags.DEFINE_string(
    "model", None, "Name of the model; a directory holds it.", flag_values=FLAGS
)
INPUT = flags.DEFINE_string(
    "input",
    None,
    "File of weights, or directory of a run or of weights.",
    required=True,
    flag_values=FLAGS,
)
OUTPUT = flags.DEFINE_string(
    "output", None, "File of weights, or directory, to write.", required=True, flag_values=FLAGS
)
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace an existing output.", flag_values=FLAGS)


def main(_: list[str]) -> None:
    """Convert the weights."""
    source, output = (cli.local_path(flag) for flag in (INPUT, OUTPUT))
    print(convert(MODEL.value, source, output, OVERWRITE.value))


if __name__ == "__main__":
    cli.run(main, FLAGS)
