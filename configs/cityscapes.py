"""DeepLabV3 on Cityscapes, 19 classes: the recipe of the ResNeSt authors.

    python -m resnest_jax.train --config=configs/cityscapes.py:resnest50 --workdir=runs/c \\
        --config.dataset=cityscapes:DIR

DIR holds leftImg8bit and gtFine, as the archives unpack. The authors published this recipe, but no
figure of a ResNeSt on Cityscapes. Scores are of evaluate --multi_scale. Sixteen images need several
GPUs, or --config.parallel.accumulate=N.
"""

from ml_collections import ConfigDict

from resnest_jax.config import default_config


def get_config(backbone: str = "resnest50") -> ConfigDict:
    """Return the recipe for a backbone."""
    config = default_config("segmentation")
    config.update(
        {
            "dataset": "cityscapes:data/cityscapes",
            "model": {"backbone": backbone, "auxiliary": True},
            "pretrained": {"weights": "published"},
            "batch_size": 16,
            "epochs": 240.0,
            "optimizer": {
                "base_learning_rate": 0.064,  # for a batch of 256: 0.004 for 16
                "schedule": "poly",
                "weight_decay": 1e-4,
                "decay": ".*",  # batch norms and biases too
                "lr_mults": (("^(head|auxiliary)/", 10.0),),
            },
            "evaluation": {"scales": (0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.25)},
            "eval_every_epochs": 10.0,
            "loader": {"workers": 8},
        }
    )
    return config
