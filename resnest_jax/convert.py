"""Convert weights between torch files and directories of weights.

    python -m resnest_jax.convert --model=resnest50 --input=resnest50-528c19ca.pth --output=weights
    python -m resnest_jax.convert --input=runs/digits --output=digits.safetensors
    python -m resnest_jax.convert --input=deeplab_resnest50_ade-2225f09d.pth --output=weights
    python -m resnest_jax.convert --input=runs/coco --output=detector.pth

The input is a file of safetensors or PyTorch, the workdir of a run or a directory that this
command wrote, of any task. The output is such a file, or without a suffix such a directory:
model.json and an Orbax checkpoint of params and batch_stats. A .pth of a detector has the names of
detectron2.
``resnest_jax.load_pretrained`` reads all classifiers. Directories (model.json, classes.json) and
.safetensors (its metadata) also hold the name and fields of the model, the names of the classes and
the size and crop of test images. What a file of segmentation or detection from elsewhere holds is
seen from its entries.
"""

from absl import flags

from resnest_jax import arguments, cli
from resnest_jax.weights.conversion import convert

FLAGS = flags.FlagValues()
MODEL = arguments.define_model(FLAGS)
BACKBONE = arguments.define_backbone(FLAGS)
INPUT = flags.DEFINE_string(
    "input",
    None,
    "File of weights, directory of a run or of weights, or published.",
    required=True,
    flag_values=FLAGS,
)
OUTPUT = flags.DEFINE_string(
    "output", None, "File of weights, or directory, to write.", required=True, flag_values=FLAGS
)
CHECKPOINT = arguments.define_checkpoint(FLAGS)
CLASS_NAMES = flags.DEFINE_string(
    "class_names",
    None,
    "Names to store: imagenet, coco, ade20k, cityscapes, pascal_context, voc, or a text file with "
    "a name per line; default: those of the input.",
    flag_values=FLAGS,
)
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace an existing output.", flag_values=FLAGS)


def main(_: list[str]) -> None:
    """Convert the weights."""
    line = convert(
        MODEL.value,
        str(arguments.local_path(INPUT)),
        arguments.local_path(OUTPUT),
        backbone=BACKBONE.value,
        checkpoint=CHECKPOINT.value,
        class_names=CLASS_NAMES.value,
        overwrite=OVERWRITE.value,
    )
    print(line)


if __name__ == "__main__":
    cli.run(main, FLAGS)
