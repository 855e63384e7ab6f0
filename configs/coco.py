"""Faster R-CNN with a feature pyramid on COCO 2017: the recipe of the ResNeSt authors, 1x.

    python -m resnest_jax.train --config=configs/coco.py:faster_rcnn_resnest50 \\
        --workdir=runs/coco --config.dataset=coco:DIR

DIR holds annotations/instances_{train2017,val2017}.json, train2017/ and val2017/. Published box AP
on val2017: resnest50 42.33, resnest101 44.72. Sixteen images of 800x1344 need several GPUs, or
--config.parallel.accumulate=N; --dry_run says how much memory.
"""

from ml_collections import ConfigDict

from resnest_jax.config import default_config

MODELS = {
    "faster_rcnn_resnest50": "resnest50",
    "faster_rcnn_resnest101": "resnest101",
}


def get_config(model: str = "faster_rcnn_resnest50") -> ConfigDict:
    """Return the recipe of a model."""
    if model not in MODELS:
        raise ValueError(f"the model must be one of {', '.join(MODELS)}; got {model}")
    config = default_config("detection")
    config.update(
        {
            "dataset": "coco:data/coco",
            "train_split": "train2017",
            "eval_split": "val2017",
            "model": {"backbone": MODELS[model]},
            "pretrained": {"weights": "published"},
            "data": {"canvases": ((800, 1344), (1344, 800))},
            "batch_size": 16,
            "steps": 90_000,
            "recompute_batch_norm": 200,  # part of the published figures
            "optimizer": {
                "base_learning_rate": 0.32,  # for a batch of 256: 0.02 for 16
                "schedule": "steps",
                "boundaries": (60_000, 80_000),
                "warmup_steps": 1000,
                "warmup_start": 0.001,
                "weight_decay": 1e-4,
                # Kernels and biases, but not those of batch norms.
                "decay": r"(?<!bn)(?<!bn\d)/(kernel|bias)$",
            },
            "eval_every_steps": 5000,
            "loader": {"workers": 8},
        }
    )
    return config
