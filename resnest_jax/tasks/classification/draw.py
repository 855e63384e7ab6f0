"""Pictures of batches as the network sees them."""

import math
from pathlib import Path

import jax
import matplotlib.figure
import numpy as np
from ml_collections import ConfigDict

from resnest_jax import recipe
from resnest_jax.config import complete
from resnest_jax.errors import InputError
from resnest_jax.tasks.classification.task import MEAN, STD

COLUMNS = 8
SHOWN_WEIGHT = 0.02  # of a target; smoothing spreads less over each class


def draw_batch(config: ConfigDict, path: Path, split: str, count: int, step: int) -> None:
    """Draw a batch of the recipe, ``train`` (augmented and mixed) or ``eval``, as a PNG.

    Args:
      config: the recipe.
      count: the images shown, the first of the batch; mixed among themselves, if at all.
      step: of training, from 0.

    Raises:
      InputError: if the config or the data is not usable, or the picture cannot be written.
    """
    config = complete(config)
    first = step * config.batch_size // count  # counted in batches of the picture's size
    config.batch_size, config.parallel.accumulate = count, 1
    run = recipe.build(config)
    batch = next(run.batches.train(first) if split == "train" else run.batches.eval())
    if split == "train":
        rng = jax.random.fold_in(jax.random.key(config.seed), step)
        images, targets = run.task.inputs(jax.random.split(rng)[0], batch)
        images = np.asarray(images) * STD + MEAN
    else:
        images, targets = batch["image"], np.eye(run.task.num_classes)[batch["label"]]
    rows = math.ceil(count / COLUMNS)
    figure = matplotlib.figure.Figure(figsize=(2 * COLUMNS, 2.4 * rows), layout="constrained")
    panels = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for axes in panels:
        axes.axis("off")
    for axes, image, target in zip(panels, images, np.asarray(targets), strict=False):
        axes.imshow(np.clip(image, 0, 255).astype(np.uint8))
        axes.set_title(_label(target, run.batches.class_names), fontsize=7)
    try:
        figure.savefig(path, dpi=100, format="png")
    except OSError as error:
        raise InputError(f"preview {path} cannot be written: {error.strerror}") from None


def _label(target: np.ndarray, class_names: tuple[str, ...]) -> str:
    """The classes of a target with their weights, the larger first."""
    order = [i for i in np.argsort(-target) if target[i] > SHOWN_WEIGHT][:2]
    return "\n".join(f"{target[i]:.2f} {class_names[i]}" for i in order)
