"""Keys of every task, with their defaults.

A default never changes: a stored config that lacks a key gets it. The default of a new key is
what the code did before the key existed.
"""

from typing import Any


def common_keys() -> dict[str, Any]:
    """Keys and defaults that all tasks share."""
    return {
        "task": "classification",
        "seed": 0,
        # A TFDS name or "folder:PATH"; splits as TFDS writes them, or subfolders.
        "dataset": "",
        "train_split": "auto",
        "eval_split": "auto",
        # Images per training step, of all devices together.
        "batch_size": 256,
        # Length of the run. Positive steps win over epochs; one of the two must be positive.
        "epochs": 0.0,
        "steps": 0,
        "log_every_steps": 50,
        # Evaluate and save a checkpoint this often. Positive steps win over epochs.
        "eval_every_epochs": 1.0,
        "eval_every_steps": 0,
        # weights: "none", "published" (fetched by the model's name) or a path; train: "all" or
        # "head".
        "pretrained": {"weights": "none", "train": "all"},
        "optimizer": _optimizer_keys(),
        "evaluation": {
            "batch_size": 0,  # images per evaluation step; 0: batch_size // parallel.accumulate
        },
        "parallel": {
            "batch_norm": "global",  # statistics of all devices together, or of each: "device"
            "accumulate": 1,  # parts of a batch, one after the other: less memory
            "shard_optimizer": False,  # each device keeps a part of the optimiser's state
        },
        "loader": {
            "workers": 0,  # processes that read images; 0: threads of the trainer
            "max_unreadable": 0,  # images that may be unreadable before the run stops
        },
        "checkpoint": {
            "keep_last": 2,  # the best one is kept too
            "every_steps": 0,  # save this often, and at every evaluation; 0: only then
        },
    }


def _optimizer_keys() -> dict[str, Any]:
    return {
        "name": "sgd",  # or "lamb"
        "base_learning_rate": 0.1,  # of 256 images; scaled by batch_size / 256
        "momentum": 0.9,  # of LAMB: beta 1
        "nesterov": False,
        "weight_decay": 0.0,
        "ema_decay": 0.0,  # of a moving average of the weights, which is evaluated; 0: none
        "schedule": "cosine",  # "cosine" and "poly" end at 0; "steps" falls at the boundaries
        # Linear warm-up. Positive steps win over epochs.
        "warmup_epochs": 0.0,
        "warmup_steps": 0,
        "warmup_start": 0.0,  # fraction of the rate at step 0
        "boundaries": (),  # of "steps": in steps if `steps` is positive, else in epochs
        "factor": 0.1,  # of "steps": multiplies the rate at each boundary
        "power": 0.9,  # of "poly"
        # Regular expressions, searched in the paths of parameters: stage1_block1/conv1/kernel.
        "decay": "kernel$",  # parameters with weight decay
        "freeze": "",  # parameters that are not trained; "": none
        "lr_mults": (),  # pairs (regular expression, factor of the rate); the first match counts
    }
