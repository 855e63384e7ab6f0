"""A small DeepLabV3 on the built-in scenes."""

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
            "epochs": 10.0,
            "augment": {"base_size": 112, "scale": (0.9, 1.1), "flip": False},
            "optimizer": {
                "name": "lamb",
                "base_learning_rate": 0.32,
                "schedule": "poly",
                "warmup_epochs": 0.3,
                "weight_decay": 1e-2,
                "decay": "kernel$",
                "clip_norm": 5.0,
            },
            "evaluation": {"scales": (0.75, 1.0, 1.25)},
            "eval_every_epochs": 5.0,
            "log_every_steps": 50,
            "checkpoint": {"keep_last": 1},
        }
    )
    return config
