"""A small ResNeSt on real digits among clutter: a task that tells small networks apart.

    python -m resnest_jax.train --config=configs/cluttered_digits.py --workdir=runs/cluttered_digits

5,748 pictures of 32x32 pixels to train on and 3,600 of other digits held out (see
resnest_jax/data/cluttered_digits.py); about a minute on two cores. Around 85 %: what is plain on
digits alone, every network above 99 %, is a matter of width, length and luck here. What came of
radix and cardinality, and how much seeds differ, is in experiments/ablation/README.md. It does not
show ImageNet: ten classes, tiny pictures, an eighth of the width and a dozen epochs.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The recipe."""
    return ConfigDict(
        {
            "seed": 0,
            # Any field of create_model can stand here. An eighth of the published width.
            "model": {
                "name": "resnest14_fast_2s1x64d",
                "planes": (8, 16, 32, 64),
                "stem_width": 8,
                "dropout": 0.0,
                "drop_block": 0.0,
                "drop_path": 0.0,
                "dtype": "float32",
            },
            # "none", "published" (fetched by the model's name) or a path; train "all" or "head".
            "pretrained": {"weights": "none", "train": "all"},
            # A TFDS name or "folder:PATH"; splits as TFDS writes them, or subfolders.
            "dataset": "cluttered_digits",
            "train_split": "auto",
            "eval_split": "auto",
            "image_size": 32,
            "eval_image_size": 32,
            "eval_crop": "whole",
            "batch_size": 64,
            "epochs": 12.0,
            "loss": {"name": "softmax", "label_smoothing": 0.1, "smooth_over": "all"},
            "augment": {
                "crop": "center",
                "shift": 0.125,  # of the side, in both directions
                "flip": False,  # a mirrored digit is another character
                "policy": "none",
                "policy_layers": 2,
                "policy_magnitude": 12,
                "jitter": 0.0,
                "lighting": 0.0,
                "erasing": 0.0,
                "repeats": 1,
            },
            # a of Beta(a, a); 0: none. One draw a batch, or one a sample.
            "mix": {"mixup": 0.0, "cutmix": 0.0, "per_sample": False},
            "optimizer": {
                "name": "sgd",
                "base_learning_rate": 0.4,  # of 256 images; scaled by batch_size / 256
                "warmup_epochs": 0.5,
                "momentum": 0.9,
                "nesterov": True,
                "weight_decay": 5e-4,
                "ema_decay": 0.0,  # of a moving average, which is then what is evaluated; 0: none
            },
            # Batch statistics of all devices ("global") or of each ("device").
            "parallel": {"batch_norm": "global", "accumulate": 1, "shard_optimizer": False},
            # Processes that read images; 0 reads on threads of the trainer. How many images may
            # turn out to be unreadable before the run stops.
            "loader": {"workers": 0, "max_unreadable": 0},
            "log_every_steps": 50,
            # Evaluates and saves a checkpoint.
            "eval_every_epochs": 2.0,
            # Kept: the best and the last ones. Saved at evaluations and every N steps; 0: not so.
            "checkpoint": {"keep_last": 1, "every_steps": 0},
        }
    )
