"""A short run on ImageNet: small images first, large ones last, averaged weights.

    python -m resnest_jax.train --config=configs/imagenet_short.py:30 --workdir=runs/short

The argument is the number of epochs, from 16 to 90. Training images grow from 128 to 192 px over
the middle of the run (three sizes, each compiled once). The test is at 224: a network trained on
random crops is best on larger images (arXiv 1906.06423). Mixup and AutoAugment are off, because
they help only in long runs. Change the model with --config.model.name. Accuracy: not measured yet.
"""

from ml_collections import ConfigDict

from resnest_jax.config import default_config


def get_config(epochs: str = "30") -> ConfigDict:
    """Return the recipe of a run of this number of epochs."""
    if not epochs.isdecimal() or not 16 <= int(epochs) <= 90:
        raise ValueError(f"epochs must be a whole number from 16 to 90; got {epochs!r}")
    count = int(epochs)
    config = default_config("classification")
    config.update(
        {
            "model": {"name": "resnest50", "dropout": 0.0, "dtype": "bfloat16"},
            "dataset": "imagenet2012",
            "train_split": "train",
            # Sizes from epoch 0, and from 0.4 and 0.75 of the run.
            "image_size": ((0, 128), (round(0.4 * count), 160), (round(0.75 * count), 192)),
            "eval_image_size": 224,
            "batch_size": 1024,
            "epochs": count,
            "loss": {"label_smoothing": 0.1},
            "augment": {"crop": "inception", "flip": True},
            "optimizer": {
                "base_learning_rate": 0.2,
                "warmup_epochs": 2.0,
                "nesterov": True,
                "weight_decay": 5e-5,
                "ema_decay": 0.9999,
            },
            "parallel": {"batch_norm": "device"},
            "loader": {"workers": 8, "max_unreadable": 100},
            "log_every_steps": 20,
            "checkpoint": {"every_steps": 500},
        }
    )
    return config
