"""A small ResNeSt on scikit-learn's handwritten digits, scaled up to 32x32.

    python -m resnest_jax.train --config=configs/digits.py --workdir=runs/digits

1,437 images to train on and 360 held out.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The recipe."""
    return ConfigDict(
        {
            "seed": 0,
            # Any field of create_model can stand here. A quarter of the published width.
            "model": {
                "name": "resnest14_fast_2s1x64d",
                "planes": (16, 32, 64, 128),
                "stem_width": 16,
                "dropout": 0.0,
                "drop_block": 0.0,
                "drop_path": 0.0,
                "dtype": "float32",
            },
            # A TFDS name or "folder:PATH"; splits as TFDS writes them, or subfolders.
            "dataset": "cluttered_digits",
            "train_split": "auto",
            "eval_split": "auto",
            "image_size": 32,
            "batch_size": 64,
            "epochs": 30.0,
            "label_smoothing": 0.1,
            "augment": {
                "shift": 0.125,  # of the side, in both directions
                "flip": False,  # a mirrored digit is another character
                "mixup": 0.2,  # of Beta(a, a), one weight a batch; 0: none
            },
            "optimizer": {
                "base_learning_rate": 0.4,  # of 256 images; scaled by batch_size / 256
                "warmup_epochs": 0.5,
                "momentum": 0.9,
                "nesterov": True,
                "weight_decay": 5e-4,
            },
            # Processes that read images; 0 reads on threads of the trainer.
            "loader": {"workers": 0},
            "log_every_steps": 50,
            # Evaluates and saves a checkpoint.
            "eval_every_epochs": 1.0,
            "checkpoint": {"keep_last": 2},  # and the best one
        }
    )
