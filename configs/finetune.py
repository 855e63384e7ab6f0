"""Fine-tune published weights on another data set, from TFDS or a folder of images.

    python -m resnest_jax.train --config=configs/finetune.py:resnest50 --workdir=runs/mine \\
        --config.dataset=folder:DIR

DIR holds train/CLASS/*.jpg and val/CLASS/*.jpg, or CLASS/*.jpg (a fifth is held out). The weights
are fetched once; without a network give a file: --config.pretrained.weights=FILE. To train only the
head: --config.pretrained.train=head --config.model.norm=frozen. With few images use frozen batch
norms in any case, and a smaller batch_size. Accuracy depends on the data set.
"""

from ml_collections import ConfigDict

from resnest_jax.config import default_config


def get_config(name: str = "resnest50") -> ConfigDict:
    """Return the recipe for a model."""
    config = default_config("classification")
    config.update(
        {
            "model": {"name": name, "dropout": 0.0},
            "pretrained": {"weights": "published"},
            "dataset": "tf_flowers",
            "batch_size": 64,
            "epochs": 20.0,
            "loss": {"label_smoothing": 0.1},
            "augment": {"crop": "inception", "flip": True, "jitter": 0.4},
            "optimizer": {
                "base_learning_rate": 0.02,
                "warmup_epochs": 1.0,
                "nesterov": True,
                "weight_decay": 1e-4,
            },
            "loader": {"workers": 4},
            "log_every_steps": 20,
        }
    )
    return config
