"""Write the boxes of other formats in COCO's form, for training.

    python -m resnest_jax.to_coco --input=VOCdevkit/VOC2012
    python -m resnest_jax.train --config=configs/detect.py --config.dataset=coco:VOCdevkit/VOC2012

The input is a folder with the XML files of Pascal VOC (of LabelImg too), or with the text files of
YOLO in labels/ and the names of the classes in data.yaml or classes.txt. The output gets
annotations/instances_SPLIT.json; the images stay where they are. Objects that VOC marks as
difficult become crowd regions, which training leaves out and evaluation ignores.
"""

from absl import flags

from resnest_jax import arguments, cli
from resnest_jax.data.conversion import coco, voc, yolo
from resnest_jax.errors import InputError

FLAGS = flags.FlagValues()
INPUT = flags.DEFINE_string(
    "input", None, "Folder of XML or text files and images.", required=True, flag_values=FLAGS
)
OUTPUT = flags.DEFINE_string(
    "output", None, "Folder to write annotations/ to; default: the input.", flag_values=FLAGS
)
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace existing files.", flag_values=FLAGS)


def main(_: list[str]) -> None:
    """Convert the annotations."""
    root = arguments.local_path(INPUT)
    output = arguments.optional(arguments.local_path, OUTPUT) or root
    if not root.is_dir():
        raise InputError(f"--input: no such folder: {root}")
    is_voc = any(root.rglob("*.xml"))
    found = voc.read_voc(root) if is_voc else yolo.read_yolo(root)
    lines = coco.write(found, output, overwrite=OVERWRITE.value)
    print(*found.notes, *lines, f"classes: {', '.join(found.class_names)}", sep="\n")


if __name__ == "__main__":
    cli.run(main, FLAGS)
