"""Prepare a TFDS data set for training, as files that are read without TensorFlow.

    python -m resnest_jax.prepare --dataset=imagenet2012 --manual_dir=DIR

Writing most data sets needs TensorFlow (`pip install 'resnest_jax[prepare]'`), on one machine,
once. ImageNet's own licence forbids fetching it for you: DIR must hold ILSVRC2012_img_train.tar
and ILSVRC2012_img_val.tar from image-net.org.
"""

from pathlib import Path

from absl import flags

from resnest_jax import cli
from resnest_jax.data.sources import open_dataset

DATASET = flags.DEFINE_string("dataset", None, "Its TFDS name.")
DATA_DIR = flags.DEFINE_string("data_dir", None, "Where to put it; TFDS's own place by default.")
MANUAL_DIR = flags.DEFINE_string("manual_dir", None, "Where files are that you had to fetch.")
flags.mark_flags_as_required(["dataset"])


def main(_: list[str]) -> None:
    """Prepare what the flags name."""
    manual_dir = MANUAL_DIR.value and Path(MANUAL_DIR.value).expanduser()
    opened = open_dataset(DATASET.value, data_dir=DATA_DIR.value, manual_dir=manual_dir)
    print(
        f"{DATASET.value}: {len(opened.train)} images to train on, {len(opened.eval)} to "
        f"evaluate, {len(opened.class_names)} classes"
    )
    if DATA_DIR.value:
        print(f"to train on it: export TFDS_DATA_DIR={DATA_DIR.value}")


if __name__ == "__main__":
    cli.run(main)
