"""Draw a batch as the network sees it.

    python -m resnest_jax.preview --config=configs/imagenet.py:resnest50 --output=OUT.png

The picture shows a batch after all augmentation and mixing, with the classes of its targets. For
segmentation it has the label maps over the images, for detection the boxes and masks.
"""

import jax
from absl import flags
from ml_collections import config_flags

from resnest_jax import arguments, cli, recipe
from resnest_jax.config import complete
from resnest_jax.tasks.classification.draw import draw_batch
from resnest_jax.tasks.detection.draw import draw_batch as draw_boxes
from resnest_jax.tasks.segmentation.draw import draw_batch as draw_label_maps
from resnest_jax.training import distributed
from resnest_jax.training.mesh import check_batch_size

FLAGS = flags.FlagValues()
CONFIG = config_flags.DEFINE_config_file("config", None, "The recipe.", flag_values=FLAGS)
OUTPUT = flags.DEFINE_string("output", None, "PNG to write.", required=True, flag_values=FLAGS)
SPLIT = flags.DEFINE_enum("split", "train", ["train", "eval"], "Split to draw.", flag_values=FLAGS)
COUNT = flags.DEFINE_integer(
    "count", 32, "Number of images.", lower_bound=2, upper_bound=256, flag_values=FLAGS
)
STEP = flags.DEFINE_integer(
    "step", 0, "Training step of the batch, from 0.", lower_bound=0, flag_values=FLAGS
)
flags.mark_flag_as_required("config", flag_values=FLAGS)


def main(_: list[str]) -> None:
    """Draw a batch of ``--count`` images."""
    distributed.start()
    path = arguments.output_path(OUTPUT)
    config = complete(CONFIG.value)
    check_batch_size(config.batch_size, config.parallel.accumulate)
    first = STEP.value * config.batch_size // COUNT.value
    config.batch_size, config.parallel.accumulate, config.evaluation.batch_size = COUNT.value, 1, 0
    run = recipe.build(config)
    if config.task == "classification":
        draw_batch(run, path, SPLIT.value, first, STEP.value)
    else:
        draw = {"segmentation": draw_label_maps, "detection": draw_boxes}[config.task]
        draw(run, path, SPLIT.value, first)
    print(path)


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")  # a picture does not need an accelerator
    cli.run(main, FLAGS)
