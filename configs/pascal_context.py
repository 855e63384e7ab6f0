"""DeepLabV3 on Pascal Context, 59 classes: the recipe of the ResNeSt authors.

    python -m resnest_jax.train --config=configs/pascal_context.py:resnest50 --workdir=runs/pc \\
        --config.dataset=pascal_context:DIR

DIR is the folder VOC2010, with JPEGImages and trainval_merged.json; label maps are written to it
the first time. Published, by the multi-scale evaluation (evaluate --multi_scale):

              backbone     pixel accuracy (%)   mean IoU (%)
    fcn        resnest50    79.19                51.98
    deeplabv3  resnest50    80.41                53.19
    deeplabv3  resnest101   81.91                56.49
    deeplabv3  resnest200   82.50                58.37
    deeplabv3  resnest269   83.06                58.92

FCN is --config.model.name=fcn. Sixteen images need several GPUs, or --config.parallel.accumulate=N.
"""

from ml_collections import ConfigDict

from resnest_jax.config import default_config


def get_config(backbone: str = "resnest50") -> ConfigDict:
    """Return the recipe for a backbone."""
    config = default_config("segmentation")
    config.update(
        {
            "dataset": "pascal_context:data/VOCdevkit/VOC2010",
            "model": {"backbone": backbone, "auxiliary": True},
            "pretrained": {"weights": "published"},
            "batch_size": 16,
            "epochs": 80.0,
            "optimizer": {
                "base_learning_rate": 0.016,  # for a batch of 256: 0.001 for 16
                "schedule": "poly",
                "weight_decay": 1e-4,
                "decay": ".*",  # batch norms and biases too
                "lr_mults": (("^(head|auxiliary)/", 10.0),),
            },
            "eval_every_epochs": 5.0,
            "loader": {"workers": 8},
        }
    )
    return config
