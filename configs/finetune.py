"""Fine-tune published weights on another data set, TFDS's or a folder of images.

    python -m resnest_jax.train --config=configs/finetune.py:resnest50 --workdir=runs/mine \\
        --config.dataset=folder:DIR

for DIR/train/CLASS/*.jpg and DIR/val/CLASS/*.jpg, or DIR/CLASS/*.jpg (a fifth is held out). The
weights are fetched once; without a network give a file: --config.pretrained.weights=FILE. For the
head alone: --config.pretrained.train=head --config.model.norm=frozen. Few images want frozen batch
norms in any case, and a smaller batch_size. Accuracy depends on the data set.
"""

from ml_collections import ConfigDict


def get_config(name: str = "resnest50") -> ConfigDict:
    """The recipe for a model."""
    return ConfigDict(
        {
            "seed": 0,
            "model": {
                "name": name,
                "dropout": 0.0,
                "drop_block": 0.0,
                "drop_path": 0.0,
                "norm": "batch",  # or "frozen": the batch norms stay as published
                "dtype": "float32",  # "bfloat16" on a GPU or TPU
                "remat": (),  # stages to recompute in the backward pass, for instance (1, 2)
            },
            "pretrained": {"weights": "published", "train": "all"},
            "dataset": "tf_flowers",
            "train_split": "auto",
            "eval_split": "auto",
            "image_size": 224,
            "eval_image_size": 224,
            "eval_crop": "authors",
            "batch_size": 64,
            "epochs": 20.0,
            "loss": {"name": "softmax", "label_smoothing": 0.1, "smooth_over": "all"},
            "augment": {
                "crop": "inception",
                "shift": 0.0,
                "flip": True,
                "policy": "none",
                "policy_layers": 2,
                "policy_magnitude": 12,
                "jitter": 0.4,
                "lighting": 0.0,
                "erasing": 0.0,
                "repeats": 1,
            },
            "mix": {"mixup": 0.0, "cutmix": 0.0, "per_sample": False},
            "optimizer": {
                "name": "sgd",
                "base_learning_rate": 0.02,  # of 256 images; scaled by batch_size / 256
                "warmup_epochs": 1.0,
                "momentum": 0.9,
                "nesterov": True,
                "weight_decay": 1e-4,
                "ema_decay": 0.0,
            },
            "parallel": {"batch_norm": "global", "accumulate": 1, "shard_optimizer": False},
            "loader": {"workers": 4, "max_unreadable": 0},
            "log_every_steps": 20,
            "eval_every_epochs": 1.0,
            "checkpoint": {"keep_last": 2, "every_steps": 0},
        }
    )
