"""Prepare a TFDS data set for training, as files that are read without TensorFlow.

    python -m resnest_jax.prepare --dataset=imagenet2012 --manual_dir=DIR

Most data sets need TensorFlow for this (``pip install 'resnest_jax[prepare]'``). Do it once, on one
machine. ImageNet's license does not allow an automatic download: DIR must hold
ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar from image-net.org.
"""

from absl import flags

from resnest_jax import arguments, cli
from resnest_jax.data.sources import open_dataset

FLAGS = flags.FlagValues()
DATASET = flags.DEFINE_string("dataset", None, "Name in TFDS.", required=True, flag_values=FLAGS)
DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Directory to write to; default: TFDS's own.", flag_values=FLAGS
)
MANUAL_DIR = flags.DEFINE_string(
    "manual_dir", None, "Directory of files that you downloaded yourself.", flag_values=FLAGS
)


def main(_: list[str]) -> None:
    """Prepare the data set."""
    data_dir, manual_dir = (
        arguments.optional(arguments.local_path, f) for f in (DATA_DIR, MANUAL_DIR)
    )
    opened = open_dataset(DATASET.value, data_dir=data_dir, manual_dir=manual_dir)
    print(
        f"{DATASET.value}: {len(opened.train)} images to train on, {len(opened.eval)} to "
        f"evaluate, {len(opened.class_names)} classes"
    )
    if data_dir:
        print(f"to train on it: export TFDS_DATA_DIR={data_dir}")


if __name__ == "__main__":
    cli.run(main, FLAGS)
