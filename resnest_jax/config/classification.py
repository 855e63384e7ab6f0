"""Keys of classification without the common ones, and their defaults, which never change."""

from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import FieldReference, placeholder

BEST_METRIC = "eval_top1"
BEST_METRIC_OF_MULTI_LABEL = "eval_map"


def best_metric(config: ConfigDict) -> str:
    """Return the name of the metric that selects the best checkpoint of a run."""
    return BEST_METRIC_OF_MULTI_LABEL if config.multi_label else BEST_METRIC


def classification_keys() -> dict[str, Any]:
    """Return the keys of classification with their defaults."""
    return {
        "model": resnest_keys(),
        "channels": 3,  # of the images: 1 grey, 3 RGB, 4 RGB and opacity
        # Side of the training images, or pairs (epoch, side) from epoch 0: ((0, 128), (5, 160)).
        "image_size": FieldReference(224, field_type=object),
        "eval_image_size": 224,
        # Part of a test image: "whole", "authors" or a fraction of its short side ("0.875").
        "eval_crop": "authors",
        # True: an image has any number of labels. Needs dataset "csv:PATH" and the sigmoid loss.
        "multi_label": False,
        "sampling": "uniform",  # or "balanced": every class equally often in training
        "loss": {
            "name": "softmax",  # or "sigmoid": binary cross-entropy
            "label_smoothing": 0.0,
            "smooth_over": "all",  # classes that share the smoothing: "all", or the "others"
            # "balanced", or pairs (class, weight): (("dog", 2.0),); (): all classes weigh the same.
            "class_weights": (),
        },
        "augment": {
            "crop": "center",  # or "inception", "efficientnet": random crops
            "shift": 0.0,  # largest random shift, of the side, in both directions
            "flip": False,
            "policy": "none",  # or "autoaugment", "randaugment"
            "policy_layers": 2,  # operators per image, of RandAugment
            "policy_magnitude": 12,  # of 30, of RandAugment
            "jitter": 0.0,  # brightness, contrast and saturation, each by at most this factor
            "lighting": 0.0,  # standard deviation of the noise along ImageNet's colour axes
            "erasing": 0.0,  # probability of erasing a box
            "repeats": 1,  # augmented copies of an image in a batch
            # Put the copies far apart, on different devices as in arXiv 1902.05509; False: side by
            # side, on one device.
            "spread_repeats": False,
        },
        "mix": {
            "mixup": 0.0,  # a of Beta(a, a); 0: none
            "cutmix": 0.0,  # a of Beta(a, a); with both, one of them per batch or image
            "per_sample": False,  # one draw per image, not per batch
        },
    }


def resnest_keys() -> dict[str, Any]:
    """Return the name and fields of a ``ResNeSt``; None means the value of the named model."""
    return {
        "name": "resnest50",
        "stage_sizes": placeholder(tuple),  # blocks in stages 1 to 4
        "num_classes": placeholder(int),  # None: the number of the data set
        "radix": placeholder(int),
        "cardinality": placeholder(int),
        "bottleneck_width": placeholder(int),
        "planes": (64, 128, 256, 512),  # base widths of the stages
        "stem_width": placeholder(int),
        "deep_stem": placeholder(bool),  # three 3x3 convolutions, or one 7x7
        "avg_down": placeholder(bool),  # average-pooled shortcuts
        "avd": placeholder(bool),  # average-pool downsampling in the block
        "avd_first": placeholder(bool),  # before its 3x3
        "attention": placeholder(str),  # "split", "se" or "sk"
        "output_stride": placeholder(int),  # 8, 16 or 32
        "dropout": placeholder(float),  # before the head
        "drop_block": 0.0,  # rate in stages 3 and 4, rising linearly from 0
        "drop_path": 0.0,  # stochastic depth of the last block, rising with depth
        "norm": "batch",  # "frozen": batch norms stay as loaded
        "remat": (),  # stages to recompute in the backward pass: (1, 2) saves memory
        "zero_init_last": True,  # each block starts as its shortcut
        "implementation": "auto",  # of grouped convolutions
        "platform": placeholder(str),  # target of "auto"; None: where the program runs
        "dtype": "float32",  # of activations; "bfloat16" on a GPU or TPU
        "frozen_stages": 0,  # n: the stem and stages 1 to n are not trained
    }
