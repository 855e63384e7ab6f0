"""A small ResNeSt on scikit-learn's handwritten digits, scaled up to 32x32.

    python -m resnest_jax.train --config=configs/digits.py --workdir=runs/digits

1,437 training images and 360 held out: top-1 is 99.4 to 99.7 % after a minute on two cores.
"""

from ml_collections import ConfigDict

from resnest_jax.config import default_config


def get_config() -> ConfigDict:
    """Return the recipe."""
    config = default_config("classification")
    config.update(
        {
            # A quarter of the published width.
            "model": {
                "name": "resnest14_fast_2s1x64d",
                "planes": (16, 32, 64, 128),
                "stem_width": 16,
                "dropout": 0.0,
            },
            "dataset": "sklearn_digits",
            "image_size": 32,
            "eval_image_size": 32,
            "eval_crop": "whole",
            "batch_size": 64,
            "epochs": 30.0,
            "loss": {"label_smoothing": 0.1},
            "augment": {"shift": 0.125},  # no flip: a mirrored digit is another character
            "mix": {"mixup": 0.2},
            "optimizer": {
                "base_learning_rate": 0.4,
                "warmup_epochs": 0.5,
                "nesterov": True,
                "weight_decay": 5e-4,
            },
        }
    )
    return config
