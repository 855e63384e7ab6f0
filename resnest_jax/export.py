"""Export a model with its weights to one file that runs without this package.

    python -m resnest_jax.export --model=resnest50 --weights=FILE --output=resnest50.stablehlo

FILE is what ``resnest_jax.load_pretrained`` takes: .safetensors, .pth, or the directory of a run.
The artefact is StableHLO as ``jax.export`` serialises it, batch norms folded, weights inside. It
maps RGB images, uint8 (B, S, S, 3) in 0..255 for any batch size B and S = --image_size, to
float32 logits (B, num_classes); ImageNet's normalisation is part of it. To run it, with jax and
flatbuffers installed and nothing else:

    import jax
    from jax import export

    artefact = export.deserialize(bytearray(open("resnest50.stablehlo", "rb").read()))
    logits = jax.jit(artefact.call)(images)

jax promises that releases of the next six months read it. On CPU an artefact made with
--platforms=cpu is faster: its pools and grouped convolutions are written for it.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
from absl import flags

from resnest_jax import cli
from resnest_jax.errors import InputError
from resnest_jax.files import replace_file
from resnest_jax.models.folding import fold
from resnest_jax.models.layers.platforms import PLATFORMS
from resnest_jax.models.resnest import MIN_SIZE, ResNeSt
from resnest_jax.tasks.classification.task import normalize
from resnest_jax.weights.pretrained import load_pretrained

SUFFIX = ".stablehlo"

MODEL = flags.DEFINE_string("model", None, "Name of the model.")
WEIGHTS = flags.DEFINE_string("weights", None, "File of weights, or the directory of a run.")
OUTPUT = flags.DEFINE_string("output", None, f"File to write, ending in {SUFFIX}.")
IMAGE_SIZE = flags.DEFINE_integer("image_size", 224, "Side of the images.", lower_bound=MIN_SIZE)
PLATFORM_LIST = flags.DEFINE_list("platforms", "cpu,cuda,tpu", "Where the artefact is to run.")
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Dtype of activations.")
flags.mark_flags_as_required(["model", "weights", "output"])


def export(
    model: ResNeSt, variables: Mapping, image_size: int, platforms: list[str]
) -> jax.export.Exported:
    """The folded model with its weights as a function of uint8 images (B, S, S, 3), B symbolic.

    Raises:
      InputError: if the model does not take RGB images.
    """
    channels = variables["params"]["stem"]["conv1"]["kernel"].shape[2]
    if channels != 3:
        raise InputError(f"only models of RGB images can be exported; these have {channels}")
    # Other platforms' operations run on CPU too, if slower; CPU's are slow elsewhere.
    platform = next((name for name in platforms if name != "cpu"), "cpu")
    model = model.clone(platform=platform)
    if platform != "cpu":
        model = model.clone(implementation="auto")  # a run's own may suit the CPU alone
    folded, variables = fold(model, variables)

    @jax.jit
    def classify(images: jax.Array) -> Any:
        return folded.apply(variables, normalize(images))

    (batch,) = jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, image_size, image_size, 3), jnp.uint8)
    return jax.export.export(classify, platforms=platforms)(images)


def check_flags(output: Path, platforms: list[str]) -> None:
    """Refuse what would fail only after minutes.

    Raises:
      InputError: if a flag is out of range or the output has no place.
    """
    if output.suffix != SUFFIX:
        raise InputError(f"--output must end in {SUFFIX}; got {output}")
    if output.is_dir() or not os.access(output.parent, os.W_OK | os.X_OK):
        raise InputError(f"--output {output} cannot be written; its directory must be writable")
    if not platforms or not set(platforms) <= set(PLATFORMS):
        raise InputError(
            f"--platforms must be some of {','.join(PLATFORMS)}; got {','.join(platforms)}"
        )


def main(_: list[str]) -> None:
    """Export what the flags name."""
    output = Path(OUTPUT.value).expanduser()
    check_flags(output, PLATFORM_LIST.value)
    dtype = jnp.dtype(DTYPE.value)
    model, variables = load_pretrained(MODEL.value, WEIGHTS.value, dtype=dtype)
    exported = export(model, variables, IMAGE_SIZE.value, PLATFORM_LIST.value)
    try:
        replace_file(output, exported.serialize())
    except OSError as error:
        raise InputError(f"--output {output} cannot be written: {error.strerror}") from error
    print(
        f"{output}: uint8 images (B, {IMAGE_SIZE.value}, {IMAGE_SIZE.value}, 3) to logits "
        f"(B, {exported.out_avals[0].shape[1]}), for {', '.join(exported.platforms)}; "
        f"{output.stat().st_size / 1e6:.1f} MB"
    )


if __name__ == "__main__":
    cli.run(main)
