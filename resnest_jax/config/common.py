"""Keys of every task, with their defaults.

A default never changes, because a stored config without the key gets it. The default of a new key
is the behaviour before the key existed.
"""

from typing import Any


def common_keys() -> dict[str, Any]:
    """Return the keys that all tasks share, with their defaults."""
    return {
        "task": "classification",
        "seed": 0,
        # A TFDS name, "folder:PATH" or "csv:PATH"; splits as TFDS writes them, subfolders or files.
        "dataset": "",
        "train_split": "auto",
        "eval_split": "auto",
        # Images per training step, over all devices.
        "batch_size": 256,
        # Length of the run: the steps if positive, else the epochs; one must be positive.
        "epochs": 0.0,
        "steps": 0,
        "log_every_steps": 50,
        "tracker": "none",  # or "wandb": metrics go to Weights & Biases too
        # Evaluate and save a checkpoint this often: the steps if positive, else the epochs.
        "eval_every_epochs": 1.0,
        "eval_every_steps": 0,
        # End after this many evaluations in a row without a better headline metric; 0: never.
        "patience": 0,
        # After the last step the statistics of batch norms become averages over this many training
        # batches; 0: they stay moving averages.
        "recompute_batch_norm": 0,
        # weights: "none", "published" (fetched by the model's name) or a path; checkpoint of a run:
        # "last", "best" or a step; train: "all" or "head".
        "pretrained": {"weights": "none", "checkpoint": "last", "train": "all"},
        "optimizer": _optimizer_keys(),
        "evaluation": {
            # Images per evaluation step, rounded up for the devices; 0: batch_size // accumulate.
            "batch_size": 0,
        },
        "parallel": {
            "batch_norm": "global",  # statistics over all devices; "device": per device
            "accumulate": 1,  # parts of a batch, one after the other: less memory
            "shard_optimizer": False,  # shard the optimiser's state over the devices
        },
        "loader": {
            "workers": 0,  # processes that read, at most one per core; 0: threads of the trainer
            "max_unreadable": 0,  # unreadable images to skip before the run stops
        },
        "checkpoint": {
            "keep_last": 2,  # the best one is kept too
            "every_steps": 0,  # save this often and at evaluations; 0: only at evaluations
        },
    }


def _optimizer_keys() -> dict[str, Any]:
    return {
        "name": "sgd",  # or "lamb", "adamw"
        "base_learning_rate": 0.1,  # for a batch of 256; scaled by batch_size / 256
        "momentum": 0.9,  # for LAMB and AdamW: beta 1
        "nesterov": False,
        "weight_decay": 0.0,
        # Largest norm of the gradient of all trained parameters; 0: 1 for LAMB, else no limit.
        "clip_norm": 0.0,
        "ema_decay": 0.0,  # of a moving average of the weights, which is evaluated; 0: none
        "schedule": "cosine",  # "cosine" and "poly" end at 0; "steps" falls at the boundaries
        # Linear warm-up: the steps if positive, else the epochs.
        "warmup_epochs": 0.0,
        "warmup_steps": 0,
        "warmup_start": 0.0,  # fraction of the rate at step 0
        "boundaries": (),  # of "steps": in steps if `steps` is positive, else in epochs
        "factor": 0.1,  # of "steps": multiplies the rate at each boundary
        "power": 0.9,  # of "poly"
        # Regular expressions, searched in the paths of parameters: stage1_block1/conv1/kernel.
        "decay": "kernel$",  # parameters with weight decay
        "freeze": "",  # parameters that are not trained; "": none
        # d: the rates of stages 4 to 1 and the stem are d, d**2, ... of that of the head; 1: equal.
        "layer_decay": 1.0,
        "lr_mults": (),  # pairs (regular expression, factor of the rate); the first match counts
    }
