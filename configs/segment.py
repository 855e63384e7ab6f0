"""Segment your own images: DeepLabV3 on published ImageNet weights, on a folder of label maps.

    python -m resnest_jax.train --config=configs/segment.py:resnest50 --workdir=runs/mine \\
        --config.dataset=masks:DIR

DIR holds images/{training,validation}/NAME.jpg and annotations/{training,validation}/NAME.png (or
train and val), a number per pixel: 0 is ignored, or else what classes.txt says, with a line
"VALUE NAME" per class. The weights are fetched once; without a network give a file:
--config.pretrained.weights=FILE. Small images want a smaller crop_size and augment.base_size.
Scores depend on the data set.
"""

from ml_collections import ConfigDict

from resnest_jax.config import default_config


def get_config(backbone: str = "resnest50") -> ConfigDict:
    """Return the recipe for a backbone."""
    config = default_config("segmentation")
    config.update(
        {
            "model": {"backbone": backbone, "auxiliary": True},
            "pretrained": {"weights": "published"},
            "batch_size": 16,
            "epochs": 60.0,
            "optimizer": {
                "base_learning_rate": 0.064,  # for a batch of 256: 0.004 for 16
                "schedule": "poly",
                "weight_decay": 1e-4,
                "decay": ".*",
                "lr_mults": (("^(head|auxiliary)/", 10.0),),
            },
            "eval_every_epochs": 2.0,
            "loader": {"workers": 4},
            "log_every_steps": 20,
        }
    )
    return config
