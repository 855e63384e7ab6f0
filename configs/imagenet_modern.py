"""Recipes A2 and A3 of "ResNet strikes back" (arXiv 2110.00476, table 2) for ResNeSt.

    python -m resnest_jax.train --config=configs/imagenet_modern.py:A3 --workdir=runs/a3

A2: 300 epochs at 224 px; A3: 100 epochs at 160 px, tested at 224. Binary cross-entropy, LAMB,
mixup and cutmix in turn, RandAugment, and for A2 each image three times a batch and stochastic
depth. timm's RandAugment, which the paper used, applies each operator drawn with probability 0.5,
at a magnitude that varies, after the crop; here it is always applied, at that magnitude, before
the crop. The paper gives 79.8 and 78.1 % for a ResNet-50; of ResNeSt-50 (--config.model.name takes
another) it was not measured yet.
"""

from ml_collections import ConfigDict

# epochs, side of the training images, learning rate at a batch of 2048, RandAugment magnitude of
# 30 (the paper's 7 and 6 of 10), repeats, stochastic depth
RECIPES = {
    "A2": (300, 224, 5e-3, 21, 3, 0.05),
    "A3": (100, 160, 8e-3, 18, 1, 0.0),
}


def get_config(name: str = "A2") -> ConfigDict:
    """The recipe of that name."""
    if name not in RECIPES:
        raise ValueError(f"no recipe {name!r}; there are {', '.join(RECIPES)}")
    epochs, train_size, learning_rate, magnitude, repeats, drop_path = RECIPES[name]
    return ConfigDict(
        {
            "seed": 0,
            "model": {
                "name": "resnest50",
                "dropout": 0.0,
                "drop_block": 0.0,
                "drop_path": drop_path,
                "zero_init_last": True,
                "dtype": "bfloat16",
                "remat": (),  # stages to recompute in the backward pass, for instance (1, 2)
            },
            "pretrained": {"weights": "none", "train": "all"},
            "dataset": "imagenet2012",
            "train_split": "train",
            "eval_split": "auto",  # `validation` with TFDS, `val` with folders
            "image_size": train_size,
            "eval_image_size": 224,
            "eval_crop": "0.95",
            "batch_size": 2048,
            "epochs": float(epochs),
            "loss": {"name": "sigmoid", "label_smoothing": 0.0, "smooth_over": "all"},
            "augment": {
                "crop": "inception",
                "shift": 0.0,
                "flip": True,
                "policy": "randaugment",
                "policy_layers": 2,
                "policy_magnitude": magnitude,
                "jitter": 0.0,
                "lighting": 0.0,
                "erasing": 0.0,
                "repeats": repeats,
            },
            "mix": {"mixup": 0.1, "cutmix": 1.0, "per_sample": False},
            "optimizer": {
                "name": "lamb",
                "base_learning_rate": learning_rate
                / 8,  # of 256 images; scaled by batch_size / 256
                "warmup_epochs": 5.0,
                "momentum": 0.9,
                "nesterov": False,
                "weight_decay": 0.02,
                "ema_decay": 0.0,
            },
            "parallel": {"batch_norm": "device", "accumulate": 1, "shard_optimizer": False},
            "loader": {"workers": 8, "max_unreadable": 100},
            "log_every_steps": 20,
            "eval_every_epochs": 1.0,
            "checkpoint": {"keep_last": 2, "every_steps": 500},
        }
    )
