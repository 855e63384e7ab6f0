"""Recipes A2 and A3 of "ResNet strikes back" (arXiv 2110.00476, table 2) for ResNeSt.

    python -m resnest_jax.train --config=configs/imagenet_modern.py:A3 --workdir=runs/a3

A2: 300 epochs at 224 px; A3: 100 epochs at 160 px, tested at 224. Binary cross-entropy, LAMB,
mixup and cutmix in turn, RandAugment, and for A2 each image three times per batch and stochastic
depth. The paper used timm's RandAugment, which applies each drawn operator with probability 0.5, at
a varying magnitude, after the crop; here it is always applied, at that magnitude, before the crop.
The paper gives 79.8 and 78.1 % for ResNet-50. For ResNeSt-50 (change it with --config.model.name)
accuracy is not measured yet.
"""

from ml_collections import ConfigDict

from resnest_jax.config import default_config

# epochs, side of the training images, learning rate at a batch of 2048, RandAugment magnitude of
# 30 (the paper's 7 and 6 of 10), repeats, stochastic depth
RECIPES = {
    "A2": (300, 224, 5e-3, 21, 3, 0.05),
    "A3": (100, 160, 8e-3, 18, 1, 0.0),
}


def get_config(name: str = "A2") -> ConfigDict:
    """Return the recipe of that name."""
    if name not in RECIPES:
        raise ValueError(f"no recipe {name!r}; choose one of {', '.join(RECIPES)}")
    epochs, train_size, learning_rate, magnitude, repeats, drop_path = RECIPES[name]
    config = default_config("classification")
    config.update(
        {
            "model": {
                "name": "resnest50",
                "dropout": 0.0,
                "drop_path": drop_path,
                "dtype": "bfloat16",
            },
            "dataset": "imagenet2012",
            "train_split": "train",
            "image_size": train_size,
            "eval_image_size": 224,
            "eval_crop": "0.95",
            "batch_size": 2048,
            "epochs": epochs,
            "loss": {"name": "sigmoid"},
            "augment": {
                "crop": "inception",
                "flip": True,
                "policy": "randaugment",
                "policy_magnitude": magnitude,
                "repeats": repeats,
            },
            "mix": {"mixup": 0.1, "cutmix": 1.0},
            "optimizer": {
                "name": "lamb",
                "base_learning_rate": learning_rate / 8,  # per 256 images, not per 2,048
                "warmup_epochs": 5.0,
                "weight_decay": 0.02,
            },
            "parallel": {"batch_norm": "device"},
            "loader": {"workers": 8, "max_unreadable": 100},
            "log_every_steps": 20,
            "checkpoint": {"every_steps": 500},
        }
    )
    return config
