"""A folder of images with label maps, and a small run of segmentation on it."""

from pathlib import Path

import numpy as np
from PIL import Image

from resnest_jax.config import default_config

CLASSES = ("grass", "sky", "wall")
COLOURS = np.array([(40, 160, 50), (90, 150, 230), (190, 60, 40)])
SIZE = (72, 56)  # height, width


def write_folder(root: Path, train: int = 16, held_out: int = 5) -> None:
    """Write images of coloured blocks, whose classes are those of the colours; a row is ignored."""
    rng = np.random.default_rng(0)
    for split, count in (("training", train), ("validation", held_out)):
        for kind in ("images", "annotations"):
            (root / kind / split).mkdir(parents=True)
        for i in range(count):
            labels = np.kron(rng.integers(0, 3, (9, 7)), np.ones((8, 8), int))
            image = COLOURS[labels] + rng.integers(-25, 26, (*SIZE, 3))
            values = (labels + 1).astype(np.uint8)
            values[:4] = 0
            name = f"{i:02}"
            Image.fromarray(image.astype(np.uint8)).save(root / f"images/{split}/{name}.png")
            Image.fromarray(values).save(root / f"annotations/{split}/{name}.png")
    (root / "classes.txt").write_text("\n".join(CLASSES))


def tiny_config(root: Path, **overrides):
    """Return a run of a few steps; ``__`` in the name of an override stands for a dot."""
    config = default_config("segmentation")
    values = {
        "dataset": f"masks:{root}",
        "model.name": "fcn",
        "model.backbone": "resnest14",
        "model.planes": (8, 8, 8, 8),
        "model.stem_width": 4,
        "model.auxiliary": True,
        "crop_size": 48,
        "augment.base_size": 64,
        "batch_size": 8,
        "steps": 8,
        "eval_every_steps": 4,
        "log_every_steps": 1,
        "optimizer.base_learning_rate": 1.6,
        "optimizer.schedule": "poly",
        "optimizer.weight_decay": 1e-4,
        "optimizer.decay": ".*",
        "optimizer.lr_mults": (("^(head|auxiliary)/", 10.0),),
    }
    values |= {key.replace("__", "."): value for key, value in overrides.items()}
    config.update_from_flattened_dict(values)
    return config
