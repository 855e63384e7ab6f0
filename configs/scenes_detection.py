"""A small Faster R-CNN on the built-in scenes: handwritten digits on photographs.

    python -m resnest_jax.train --config=configs/scenes_detection.py --workdir=runs/digit_boxes

4,800 training scenes of 112x112 pixels, and 300 of other digits and other parts of the photographs
(see resnest_jax/data/builtin/scenes.py), written as images with boxes in COCO's form. Four CPU
minutes; AP50 98.0, 99.1, 98.7 %, AP 87.7, 89.1, 87.5 %, seeds 0, 1, 2. A mirrored digit is another
character, so there is no flip.
"""

from ml_collections import ConfigDict

from resnest_jax.config import default_config


def get_config() -> ConfigDict:
    """Return the recipe."""
    config = default_config("detection")
    config.update(
        {
            "dataset": "scenes",
            "model": {
                "backbone": "resnest14_fast_2s1x64d",
                "planes": (16, 32, 64, 64),
                "stem_width": 8,
                "frozen_stages": 0,
                "features": 32,
                "hidden": 128,
                "anchor_sizes": (16, 24, 40, 56, 80),
                "anchor_ratios": (1.0, 1.6),
                "rpn_samples": 64,
                "train_candidates": 100,
                "test_candidates": 50,
                "train_proposals": 64,
                "test_proposals": 32,
                "roi_samples": 32,
                "detections": 10,
            },
            "data": {"short_sides": (112,), "long_side": 128, "max_objects": 4, "flip": False},
            "batch_size": 8,
            "epochs": 3.0,
            "optimizer": {
                "name": "lamb",
                "base_learning_rate": 0.32,
                "schedule": "cosine",
                "warmup_epochs": 0.15,
                "weight_decay": 1e-2,
                "clip_norm": 5.0,
            },
            "evaluation": {"short_side": 112, "batch_size": 20},
            "eval_every_epochs": 1.0,
            "checkpoint": {"keep_last": 1},
        }
    )
    return config
