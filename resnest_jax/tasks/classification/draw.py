"""Draw batches as the network gets them."""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.figure
import numpy as np

from resnest_jax.errors import InputError
from resnest_jax.files import writing
from resnest_jax.models.inputs import denormalize
from resnest_jax.tasks.classification.task import Classification
from resnest_jax.tasks.loading import read_batch
from resnest_jax.training.run import Run

COLUMNS = 8
MOST_LABELS = 5  # shown, if an image has any number of them
SHOWN_WEIGHT = 0.02  # in a target; smoothing gives less to each class


def draw_batch(run: Run, path: Path, split: str, batch_index: int = 0, step: int = 0) -> None:
    """Draw a batch as a PNG.

    Args:
      run: a run of classification.
      path: PNG to write.
      split: ``train``: augmented and mixed; ``eval``: the first batch.
      batch_index: training batch of the run, from 0.
      step: training step whose random numbers mix the batch.

    Raises:
      InputError: if the run has another task, or the picture cannot be written.
    """
    task = run.task
    if not isinstance(task, Classification):
        name = type(task).__name__
        raise InputError(f"only batches of classification can be drawn; the task is {name}")
    batch = read_batch(run.batches, split, batch_index)
    if split == "train":
        rng = jax.random.fold_in(jax.random.key(run.options.seed), step)
        arrays = {name: jnp.asarray(value) for name, value in batch.items()}
        normalized, targets, _ = task.inputs(jax.random.split(rng)[0], arrays)
        images = denormalize(np.asarray(normalized))
    else:
        images, targets = batch["image"], batch["label"]
        if targets.ndim == 1:
            targets = np.eye(task.num_classes)[targets]
    most = 2 if batch["label"].ndim == 1 else MOST_LABELS  # an image and its partner
    title = "Training images after augmentation and mixing, with the classes of their targets"
    if split == "eval":
        title = "Evaluation images as the network sees them, with their classes"
    rows = math.ceil(len(images) / COLUMNS)
    figure = matplotlib.figure.Figure(figsize=(2 * COLUMNS, 2.4 * rows), layout="constrained")
    panels = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for axes in panels:
        axes.axis("off")
    for axes, image, target in zip(panels, images, np.asarray(targets), strict=False):
        # The last three are for grey images.
        axes.imshow(np.clip(image, 0, 255).astype(np.uint8), cmap="gray", vmin=0, vmax=255)
        # Do not parse $ as math.
        label = _label(target, run.batches.class_names, most)
        axes.set_title(label, fontsize=8, parse_math=False)
    figure.suptitle(title)
    with writing("output", path):
        figure.savefig(path, dpi=100, format="png")


def _label(target: np.ndarray, class_names: tuple[str, ...], most: int) -> str:
    """Return up to ``most`` classes of a target, the larger first, with those shares that mix."""
    order = [i for i in np.argsort(-target) if target[i] > SHOWN_WEIGHT][:most]
    if len(order) == 1:
        return f"class {class_names[order[0]]}"
    shares = ["" if target[i] == 1 else f"{100 * target[i]:.0f} % " for i in order]
    return "\n".join(
        f"{share}class {class_names[i]}" for share, i in zip(shares, order, strict=True)
    )
