"""Keys of detection without the common ones, and their defaults, which never change."""

from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from resnest_jax.config.classification import resnest_keys
from resnest_jax.models.zoo import RCNNS

BEST_METRIC = "eval_box_ap"
BEST_METRIC_OF_MASKS = "eval_mask_ap"


def has_masks(config: ConfigDict) -> bool:
    """Return whether the model of a config has a mask head."""
    convolutions = config.model.mask_convolutions
    if convolutions is None:
        convolutions = RCNNS.get(config.model.name, {}).get("mask_convolutions", 0)
    return convolutions > 0


def best_metric(config: ConfigDict) -> str:
    """Return the name of the metric that selects the best checkpoint of a run."""
    return BEST_METRIC_OF_MASKS if has_masks(config) else BEST_METRIC


def eval_sides(config: ConfigDict) -> tuple[int, int]:
    """Return the shorter side of the images of the evaluation, and the most that the longer is."""
    longest = config.evaluation.long_side
    return config.evaluation.short_side, config.data.long_side if longest is None else longest


def detection_keys() -> dict[str, Any]:
    """Return the keys of detection with their defaults."""
    return {
        "model": _model_keys(),
        "data": {
            # The shorter side of a training image: "range", an integer from the least to the
            # largest of short_sides; "choice", one of them. The longer side is at most long_side.
            "short_sides": (640, 800),
            "short_side_sampling": "range",
            "long_side": 1333,
            # Images are padded to the smallest canvas that holds them, a batch to one. Pairs
            # (height, width), of multiples of 32; (): one for the images wider than high and one
            # for the others, as small as the data set allows.
            "canvases": (),
            # Whether batches are of images wider than high or of others: less padding. If the two
            # kinds look different, such as microscopes of two makes, False is much better: the
            # statistics of batch norms differ between batches of one kind and the evaluation.
            "aspect_grouping": True,
            # Per training image; of more, some are chosen at random. A model with masks takes
            # this many bits for each pixel of a canvas.
            "max_objects": 100,
            "flip": True,  # mirror half of the images
            # Of a training image a random part with an object is taken, whose sides are at least
            # this fraction of the image's; 1: the whole image. The canvases hold all such parts.
            "crop": 1.0,
        },
        "evaluation": {
            "short_side": 800,  # of the images; the longer one is at most evaluation.long_side
            "long_side": placeholder(int),  # None: data.long_side
            # Short sides of the views of an image in the multi-scale evaluation, whose longer side
            # is at most view_long_side. With data.flip each is mirrored too.
            "view_sides": (400, 500, 600, 700, 800, 900, 1000, 1100, 1200),
            "view_long_side": 4000,
        },
    }


def _model_keys() -> dict[str, Any]:
    """Return the name and fields of an ``RCNN``, and those of its backbone."""
    return resnest_keys() | {
        "name": "faster_rcnn",  # or mask_rcnn, cascade_rcnn, cascade_mask_rcnn
        "backbone": "resnest50",
        "frozen_stages": 1,
        "features": 256,  # channels of the pyramid and of the convolutions on it
        "hidden": 1024,  # units of the box head's dense layer
        "mask_convolutions": placeholder(int),  # of a mask head
        # As roi_threshold, of the stages of a cascade after the first.
        "cascade_thresholds": placeholder(tuple),
        "anchor_sizes": (32, 64, 128, 256, 512),  # pixels, of levels 2 to 6
        "anchor_ratios": (0.5, 1.0, 2.0),  # height / width
        # Overlap with an object below which an anchor is background, from which it is foreground.
        "rpn_thresholds": (0.3, 0.7),
        "rpn_samples": 256,  # anchors of an image in the losses
        "rpn_positives": 0.5,  # the largest fraction of foreground among them
        # Anchors of each level that become proposals, and proposals of an image that are kept; the
        # authors train a cascade on 2000 of them.
        "train_candidates": 2000,
        "test_candidates": 1000,
        "train_proposals": 1000,
        "test_proposals": 1000,
        "proposal_nms": 0.7,  # overlap above which the lower score is dropped
        "roi_threshold": 0.5,  # overlap from which a proposal is foreground
        "roi_samples": 512,  # proposals of an image in the losses
        "roi_positives": 0.25,  # the largest fraction of foreground among them
        "score_threshold": 0.05,  # of detections
        "detection_nms": 0.5,  # as proposal_nms, within a class
        "detections": 100,  # per image
    }
