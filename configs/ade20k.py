"""DeepLabV3 on ADE20K, 150 classes: the recipe of the ResNeSt authors.

    python -m resnest_jax.train --config=configs/ade20k.py:resnest50 --workdir=runs/ade20k \\
        --config.dataset=ade20k:DIR

DIR is the folder ADEChallengeData2016, as the archive unpacks. Published, by the multi-scale
evaluation (evaluate --multi_scale):

              backbone     pixel accuracy (%)   mean IoU (%)
    fcn        resnest50    80.18                42.94
    deeplabv3  resnest50    81.17                45.12
    deeplabv3  resnest101   82.07                46.91
    deeplabv3  resnest200   82.45                48.36
    deeplabv3  resnest269   82.62                47.60

FCN is --config.model.name=fcn. Sixteen images need several GPUs, or --config.parallel.accumulate=N.
"""

from ml_collections import ConfigDict

from resnest_jax.config import default_config


def get_config(backbone: str = "resnest50") -> ConfigDict:
    """Return the recipe for a backbone."""
    config = default_config("segmentation")
    config.update(
        {
            "dataset": "ade20k:data/ADEChallengeData2016",
            "model": {"backbone": backbone, "auxiliary": True},
            "pretrained": {"weights": "published"},
            "batch_size": 16,
            "epochs": 180.0,
            "optimizer": {
                "base_learning_rate": 0.064,  # for a batch of 256: 0.004 for 16
                "schedule": "poly",
                "weight_decay": 1e-4,
                "decay": ".*",  # batch norms and biases too
                "lr_mults": (("^(head|auxiliary)/", 10.0),),
            },
            "eval_every_epochs": 10.0,
            "loader": {"workers": 8},
        }
    )
    return config
