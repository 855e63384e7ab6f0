"""A small FCN on the built-in scenes: handwritten digits on photographs.

    python -m resnest_jax.train --config=configs/scenes_segmentation.py --workdir=runs/digit_maps

4,800 training scenes of 112x112 pixels, and 300 of other digits and other parts of the photographs
(see resnest_jax/data/builtin/scenes.py). Classes are the ten digits and the ground. Six CPU
minutes; mean IoU 91.1, 91.0, 90.9 %, seeds 0, 1, 2. A mirrored digit is another character,
so there is no flip, in evaluate --multi_scale neither.
"""

from ml_collections import ConfigDict

from resnest_jax.config import default_config


def get_config() -> ConfigDict:
    """Return the recipe."""
    config = default_config("segmentation")
    config.update(
        {
            "dataset": "scenes",
            "model": {
                "name": "fcn",
                "backbone": "resnest14_fast_2s1x64d",
                "planes": (16, 32, 64, 64),
                "stem_width": 8,
                "output_stride": 8,
                "dropout": 0.0,
            },
            "crop_size": 112,
            "batch_size": 8,
            "epochs": 9.0,
            "augment": {"base_size": 112, "scale": (0.9, 1.15), "flip": False},
            "optimizer": {
                "name": "lamb",
                "base_learning_rate": 0.32,
                "schedule": "poly",
                "warmup_epochs": 0.3,
                "weight_decay": 1e-2,
                "clip_norm": 5.0,
                "ema_decay": 0.995,
            },
            "evaluation": {"scales": (0.9, 1.0, 1.1)},
            "eval_every_epochs": 3.0,
            "log_every_steps": 50,
            "checkpoint": {"keep_last": 1},
        }
    )
    return config
