"""Detection and instance segmentation on COCO 2017: the recipes of the ResNeSt authors, 1x.

    python -m resnest_jax.train --config=configs/coco.py:mask_rcnn_resnest50 \\
        --workdir=runs/coco --config.dataset=coco:DIR

DIR holds annotations/instances_{train2017,val2017}.json, train2017/ and val2017/. Published AP on
val2017, of boxes, and of masks:

                       resnest50        resnest101
    faster_rcnn        42.33            44.72
    mask_rcnn          42.81  38.14     45.75  40.65
    cascade_rcnn       45.41            47.50
    cascade_mask_rcnn  46.19  39.55     48.30  41.56

cascade_mask_rcnn_resnest200_tricks is the authors' recipe "with tricks", three times as long: 50.54
and 44.21. That is at one scale; evaluate --multi_scale is their test-time augmentation. Sixteen
images of 800x1344 need several GPUs, or --config.parallel.accumulate=N; --dry_run says how much
memory.
"""

from ml_collections import ConfigDict

from resnest_jax.config import default_config

BACKBONES = ("resnest50", "resnest101")
NAMES = ("faster_rcnn", "mask_rcnn", "cascade_rcnn", "cascade_mask_rcnn")
TRICKS = "cascade_mask_rcnn_resnest200_tricks"
MODELS = (*(f"{name}_{backbone}" for name in NAMES for backbone in BACKBONES), TRICKS)


def get_config(model: str = "faster_rcnn_resnest50") -> ConfigDict:
    """Return the recipe of a model."""
    if model not in MODELS:
        raise ValueError(f"the model must be one of {', '.join(MODELS)}; got {model}")
    name, _, backbone = model.removesuffix("_tricks").rpartition("_")
    config = default_config("detection")
    config.update(
        {
            "dataset": "coco:data/coco",
            "train_split": "train2017",
            "eval_split": "val2017",
            "model": {"name": name, "backbone": backbone},
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
    if name.startswith("cascade"):
        config.model.train_proposals = 2000
    if "mask" in name:
        config.data.short_side_sampling = "choice"
        config.data.short_sides = (640, 672, 704, 736, 768, 800)
    if model == TRICKS:
        config.update(
            {
                "model": {"mask_convolutions": 8},
                "data": {
                    "short_sides": (640, 864),
                    "short_side_sampling": "range",
                    "long_side": 1440,
                    "crop": 0.9,
                    # The last is for parts of images that are almost square.
                    "canvases": ((864, 1440), (1440, 864), (1088, 1088)),
                },
                "evaluation": {"long_side": 1333},
                "steps": 270_000,
                "optimizer": {"boundaries": (240_000, 255_000)},
            }
        )
    return config
