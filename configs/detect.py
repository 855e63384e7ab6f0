"""Detect objects in your own images, with their masks or without, on published ImageNet weights.

    python -m resnest_jax.train --config=configs/detect.py:MODEL --workdir=runs/mine \\
        --config.dataset=coco:DIR

MODEL is faster_rcnn, cascade_rcnn (slower, with more exact boxes), mask_rcnn or cascade_mask_rcnn;
the last two need a segmentation of each object. DIR holds annotations/instances_{train,val}.json in
COCO's form and the images in train/ and val/; python -m resnest_jax.to_coco writes that, without
masks, from the XML files of VOC and the text files of YOLO. The weights are fetched once; without a
network give a file: --config.pretrained.weights=FILE. Small images want smaller data.short_sides,
data.long_side and evaluation.short_side, and small objects smaller model.anchor_sizes. Another
backbone is --config.model.backbone. Scores depend on the data.
"""

from ml_collections import ConfigDict

from resnest_jax.config import default_config


def get_config(model: str = "faster_rcnn") -> ConfigDict:
    """Return the recipe of a model."""
    config = default_config("detection")
    config.update(
        {
            "model": {"name": model},
            "pretrained": {"weights": "published"},
            "batch_size": 4,
            "epochs": 24.0,
            "optimizer": {
                "base_learning_rate": 0.32,  # for a batch of 256: 0.005 for 4
                "schedule": "steps",
                "boundaries": (16.0, 22.0),
                "warmup_epochs": 0.5,
                "warmup_start": 0.001,
                "weight_decay": 1e-4,
                # Kernels and biases, but not those of batch norms.
                "decay": r"(?<!bn)(?<!bn\d)/(kernel|bias)$",
            },
            "eval_every_epochs": 2.0,
            "loader": {"workers": 4},
            "log_every_steps": 20,
        }
    )
    if model.startswith("cascade"):
        config.model.train_proposals = 2000  # as the authors
    return config
