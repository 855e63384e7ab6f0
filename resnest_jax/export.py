"""Export a model with its weights to one file that runs without this package.

    python -m resnest_jax.export --model=resnest50 --weights=FILE --output=resnest50.stablehlo

FILE is a source for ``resnest_jax.load_pretrained``: .safetensors, .pth, or the directory of a run.
The artefact is StableHLO as ``jax.export`` serialises it, batch norms folded, weights included. It
maps RGB images, uint8 (B, S, S, 3) in 0..255 for any batch size B and S = --image_size, to
float32 logits (B, num_classes); ImageNet's normalization is part of it. To run it, with only jax
and flatbuffers installed:

    import jax
    from jax import export

    artefact = export.deserialize(bytearray(open("resnest50.stablehlo", "rb").read()))
    logits = jax.jit(artefact.call)(images)

jax promises that releases of the next six months read it. On CPU an artefact exported with
--platforms=cpu is faster: its pools and grouped convolutions suit the CPU.
"""

from absl import flags

from resnest_jax import cli
from resnest_jax.models.resnest import MIN_SIZE
from resnest_jax.weights import stablehlo

FLAGS = flags.FlagValues()
MODEL = flags.DEFINE_string("model", None, "Name of the model.", required=True, flag_values=FLAGS)
WEIGHTS = flags.DEFINE_string(
    "weights", None, "File of weights, or directory of a run.", required=True, flag_values=FLAGS
)
OUTPUT = flags.DEFINE_string(
    "output",
    None,
    f"File to write, ending in {stablehlo.SUFFIX}.",
    required=True,
    flag_values=FLAGS,
)
IMAGE_SIZE = flags.DEFINE_integer(
    "image_size", 224, "Side of the images.", lower_bound=MIN_SIZE, flag_values=FLAGS
)
PLATFORMS = flags.DEFINE_list(
    "platforms", "cpu,cuda,tpu", "Platforms that the artefact runs on.", flag_values=FLAGS
)
DTYPE = flags.DEFINE_enum(
    "dtype", "float32", ["float32", "bfloat16"], "Dtype of activations.", flag_values=FLAGS
)


def main(_: list[str]) -> None:
    """Export the model."""
    line = stablehlo.export_file(
        MODEL.value,
        WEIGHTS.value,
        cli.local_path(OUTPUT),
        image_size=IMAGE_SIZE.value,
        platforms=PLATFORMS.value,
        dtype=DTYPE.value,
    )
    print(line)


if __name__ == "__main__":
    cli.run(main, FLAGS)
