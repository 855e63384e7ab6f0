"""Segment your own images without published weights: a small DeepLabV3, for two CPU cores.

    python -m resnest_jax.train --config=configs/segment_small.py --workdir=runs/small \\
        --config.dataset=masks:DIR

The folder is as for configs/segment.py. On CamVid (367 street scenes of 320x240 pixels, 11 classes,
101 scenes for evaluation), with the class weights below: mean IoU 56.6 % of centred crops in
training, 57.2 % with --multi_scale at scale 1, pixel accuracy 88.5 %, in 1,652 steps and 44 minutes
of CPU time; 50.8 and 51.7 % in 9 minutes with --config.epochs=12 --config.crop_size=240
--config.augment.base_size=320. Rare classes need weights, here one by the root of the share of
pixels:

    --config.loss.class_weights="(('sky',2.4),('building',2.1),('pole',10.),('road',1.8),\\
('pavement',4.7),('tree',3.2),('sign',9.2),('fence',9.4),('car',4.1),('pedestrian',12.5),\\
('bicyclist',18.6))"
"""

from ml_collections import ConfigDict

from resnest_jax.config import default_config


def get_config() -> ConfigDict:
    """Return the recipe."""
    config = default_config("segmentation")
    config.update(
        {
            # Half of the published width and less.
            "model": {
                "backbone": "resnest14_fast_2s1x64d",
                "planes": (32, 64, 96, 128),
                "stem_width": 16,
                "output_stride": 16,
                "auxiliary": True,
                "dropout": 0.0,
                "aspp_dropout": 0.1,
            },
            "crop_size": 320,
            "batch_size": 8,
            "epochs": 36.0,
            "loss": {"auxiliary_weight": 0.4},
            "augment": {"base_size": 480, "scale": (0.6, 1.6)},
            "optimizer": {
                "name": "lamb",
                "base_learning_rate": 0.16,
                "schedule": "poly",
                "warmup_epochs": 1.0,
                "weight_decay": 1e-2,
                "clip_norm": 5.0,
            },
            "evaluation": {"scales": (1.0,)},
            "eval_every_epochs": 6.0,
            "log_every_steps": 20,
        }
    )
    return config
