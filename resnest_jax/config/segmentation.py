"""Keys of segmentation without the common ones, and their defaults, which never change."""

from typing import Any

from ml_collections import ConfigDict

from resnest_jax.config.classification import resnest_keys

BEST_METRIC = "eval_miou"


def best_metric(_: ConfigDict) -> str:
    """Return the name of the metric that selects the best checkpoint of a run."""
    return BEST_METRIC


def segmentation_keys() -> dict[str, Any]:
    """Return the keys of segmentation with their defaults."""
    return {
        "model": _model_keys(),
        # Side of the training crops, of the images of the evaluation during training, and of the
        # windows of the multi-scale evaluation.
        "crop_size": 480,
        "loss": {
            "auxiliary_weight": 0.2,  # of the loss of the auxiliary head
            # "balanced", in inverse proportion to the training pixels, or pairs (class, weight):
            # (("sky", 2.0),); (): all classes weigh the same.
            "class_weights": (),
        },
        "augment": {
            # The longer side of an image becomes random, from base_size * scale[0] to
            # base_size * scale[1]; the multi-scale evaluation starts from base_size too.
            "base_size": 520,
            "scale": (0.5, 2.0),
            "flip": True,  # mirror half of the images
        },
        "evaluation": {
            # Factors of base_size in the multi-scale evaluation.
            "scales": (0.5, 0.75, 1.0, 1.25, 1.5, 1.75),
        },
    }


def _model_keys() -> dict[str, Any]:
    """Return the name and fields of a ``SegmentationModel``, and those of its backbone."""
    return resnest_keys() | {
        "name": "deeplabv3",  # or "fcn"
        "backbone": "resnest50",
        "output_stride": 8,  # of the backbone: 8, 16 or 32
        "auxiliary": False,  # a second head on stage 3
        "dropout": 0.1,  # before the last layer of each head
        "aspp_dropout": 0.5,  # of whole channels, after the pyramid of deeplabv3
    }
