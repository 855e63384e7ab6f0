"""See what the network sees.

    python -m resnest_jax.preview --config=configs/imagenet.py:resnest50 --preview=OUT.png

A picture of a batch after all augmentation and mixing, with the classes it is trained towards.
"""

from pathlib import Path

import jax
from absl import flags
from ml_collections import config_flags

from resnest_jax import cli
from resnest_jax.tasks.classification import draw
from resnest_jax.training import distributed

CONFIG = config_flags.DEFINE_config_file("config", None, "The recipe.", lock_config=True)
PREVIEW = flags.DEFINE_string("preview", None, "The picture to write, PNG.")
SPLIT = flags.DEFINE_enum("split", "train", ["train", "eval"], "Which images.")
COUNT = flags.DEFINE_integer("count", 32, "How many of them.", lower_bound=2, upper_bound=256)
STEP = flags.DEFINE_integer("step", 0, "The training step whose batch to draw.", lower_bound=0)
flags.mark_flags_as_required(["config", "preview"])


def main(_: list[str]) -> None:
    """Draw what the flags name."""
    distributed.start()
    path = Path(PREVIEW.value).expanduser()
    draw.draw_batch(CONFIG.value, path, SPLIT.value, COUNT.value, STEP.value)
    print(path)


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")  # a picture is no work for an accelerator
    cli.run(main)
