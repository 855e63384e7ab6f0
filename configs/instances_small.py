"""Segment objects in your own images without published weights: a small Mask R-CNN, for two cores.

    python -m resnest_jax.train --config=configs/instances_small.py --workdir=runs/small \\
        --config.dataset=coco:DIR

The folder is as for configs/detect.py, with a segmentation of each object.
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
                "anchor_sizes": (16, 28, 48, 80, 128),
            },
            "data": {"short_sides": (320, 416), "long_side": 520, "max_objects": 104},
            "epochs": 16.0,
            "evaluation": {"short_side": 384},
        }
    )
    return config
