"""Convert weights between torch files and directories of ours.

    python -m resnest_jax.convert --model=resnest50 --input=resnest50-528c19ca.pth --output=weights
    python -m resnest_jax.convert --input=runs/digits --output=digits.safetensors

The input is a .safetensors, .pth or .pt file, the workdir of a run (its last checkpoint) or a
directory that this command wrote; a directory names its model itself. The output is such a file,
or without an ending such a directory: model.json and an Orbax checkpoint of params and
batch_stats. ``resnest_jax.load_pretrained`` reads them all.
"""

from pathlib import Path

import jax
from absl import flags

from resnest_jax import cli
from resnest_jax.errors import InputError
from resnest_jax.models.zoo import create_model
from resnest_jax.weights.pretrained import SUFFIXES, read_weights, save_directory, save_weights
from resnest_jax.weights.torch_names import from_torch

MODEL = flags.DEFINE_string("model", None, "Name of the model; a directory knows its own.")
INPUT = flags.DEFINE_string("input", None, "File of weights, or directory of a run or of weights.")
OUTPUT = flags.DEFINE_string("output", None, "File of weights, or directory, to write.")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Whether the output may be replaced.")
flags.mark_flags_as_required(["input", "output"])


def convert(name: str | None, source: Path, output: Path, overwrite: bool = False) -> str:
    """Write the weights of a source to the output; returns what was written, in words.

    Raises:
      InputError: if the source does not hold the model, or the output is of no known kind, is
        there already or cannot be written.
    """
    if output.suffix not in (*SUFFIXES, ""):
        raise InputError(
            f"output must end in one of {', '.join(SUFFIXES)}, or have no ending: a directory; "
            f"got {output}"
        )
    if output.exists() and not overwrite:
        raise InputError(f"output {output} is there already; pass --overwrite to replace it")
    description, state_dict = read_weights(name, source)
    model = create_model(**description)
    variables = from_torch(state_dict, model)
    if output.suffix:
        entries = save_weights(variables, model, output)
    else:
        save_directory(description, variables, output)
        entries = len(jax.tree.leaves(variables))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    return f"{output}: {description['name']}, {entries} entries, {parameters:,} parameters"


def main(_: list[str]) -> None:
    """Convert what the flags name."""
    source, output = (Path(flag.value).expanduser() for flag in (INPUT, OUTPUT))
    print(convert(MODEL.value, source, output, OVERWRITE.value))


if __name__ == "__main__":
    cli.run(main)
