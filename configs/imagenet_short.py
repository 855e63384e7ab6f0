"""A short run on ImageNet: small images first, large ones last, a moving average of the weights.

    python -m resnest_jax.train --config=configs/imagenet_short.py:30 --workdir=runs/short

The argument is the number of epochs, from 16 to 90. Training images grow from 128 to 192 px over
the middle of the run (three sizes, each compiled once) and the test is at 224: a network trained
on random crops does best on larger ones (arXiv 1906.06423). Neither mixup nor AutoAugment, which
need long runs to pay. Change the model with --config.model.name. Accuracy: not measured yet.
"""

from ml_collections import ConfigDict


def get_config(epochs: str = "30") -> ConfigDict:
    """The recipe of a run of so many epochs."""
    if not epochs.isdecimal() or not 16 <= int(epochs) <= 90:
        raise ValueError(f"epochs must be a whole number from 16 to 90; got {epochs!r}")
    count = int(epochs)
    return ConfigDict(
        {
            "seed": 0,
            "model": {
                "name": "resnest50",
                "dropout": 0.0,
                "drop_block": 0.0,
                "drop_path": 0.0,
                "zero_init_last": True,
                "dtype": "bfloat16",
                "remat": (),  # stages to recompute in the backward pass, for instance (1, 2)
            },
            "pretrained": {"weights": "none", "train": "all"},
            "dataset": "imagenet2012",
            "train_split": "train",
            "eval_split": "auto",  # `validation` with TFDS, `val` with folders
            # From epoch 0, 0.4 and 0.75 of the run on.
            "image_size": ((0, 128), (round(0.4 * count), 160), (round(0.75 * count), 192)),
            "eval_image_size": 224,
            "eval_crop": "authors",
            "batch_size": 1024,
            "epochs": float(count),
            "loss": {"name": "softmax", "label_smoothing": 0.1, "smooth_over": "all"},
            "augment": {
                "crop": "inception",
                "shift": 0.0,
                "flip": True,
                "policy": "none",
                "policy_layers": 2,
                "policy_magnitude": 12,
                "jitter": 0.0,
                "lighting": 0.0,
                "erasing": 0.0,
                "repeats": 1,
            },
            "mix": {"mixup": 0.0, "cutmix": 0.0, "per_sample": False},
            "optimizer": {
                "name": "sgd",
                "base_learning_rate": 0.2,  # of 256 images; scaled by batch_size / 256
                "warmup_epochs": 2.0,
                "momentum": 0.9,
                "nesterov": True,
                "weight_decay": 5e-5,
                "ema_decay": 0.9999,
            },
            "parallel": {"batch_norm": "device", "accumulate": 1, "shard_optimizer": False},
            "loader": {"workers": 8, "max_unreadable": 100},
            "log_every_steps": 20,
            "eval_every_epochs": 1.0,
            "checkpoint": {"keep_last": 2, "every_steps": 500},
        }
    )
