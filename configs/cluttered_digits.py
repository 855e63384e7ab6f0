"""A small ResNeSt on real digits among clutter: a task on which small networks differ.

    python -m resnest_jax.train --config=configs/cluttered_digits.py --workdir=runs/cluttered_digits

5,748 training pictures of 32x32 pixels, and 3,600 of other digits held out (see
resnest_jax/data/builtin/cluttered_digits.py); about a minute on two cores. Top-1 is about 85 %. On
plain digits every network is above 99 %; here width, length and luck matter. For the effect of
radix and cardinality, and the spread over seeds, see experiments/ablation/README.md. It does not
stand for ImageNet: ten classes, tiny pictures, an eighth of the width and a dozen epochs.
"""

from ml_collections import ConfigDict

from resnest_jax.config import default_config


def get_config() -> ConfigDict:
    """Return the recipe."""
    config = default_config("classification")
    config.update(
        {
            # An eighth of the published width.
            "model": {
                "name": "resnest14_fast_2s1x64d",
                "planes": (8, 16, 32, 64),
                "stem_width": 8,
                "dropout": 0.0,
            },
            "dataset": "cluttered_digits",
            "image_size": 32,
            "eval_image_size": 32,
            "eval_crop": "whole",
            "batch_size": 64,
            "epochs": 12.0,
            "loss": {"label_smoothing": 0.1},
            "augment": {"shift": 0.125},  # no flip: a mirrored digit is another character
            "optimizer": {
                "base_learning_rate": 0.4,
                "warmup_epochs": 0.5,
                "nesterov": True,
                "weight_decay": 5e-4,
            },
            "eval_every_epochs": 2.0,
            "checkpoint": {"keep_last": 1},
        }
    )
    return config
