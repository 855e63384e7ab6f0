"""The published training runs on ImageNet (arXiv 2004.08955, section 5; the authors' Gluon code).

    python -m resnest_jax.train --config=configs/imagenet.py:resnest50 --workdir=runs/resnest50

This reads ImageNet as TFDS prepares it (``python -m resnest_jax.prepare --dataset=imagenet2012``),
or DIR/train/CLASS/*.JPEG and DIR/val/CLASS/*.JPEG with --config.dataset=folder:DIR. Use --dry_run
first: it checks whether the run fits the devices, the disk and the input. The paper used 64 GPUs;
with fewer, --config.parallel.accumulate=N keeps the batch and lowers the memory.

Expected top-1 (%), the authors' figures at the test crop, for the values of this file:

    model                     total batch  rate  train  test  top-1
    resnest14                        1024   0.4    224   224  75.75
    resnest26                        1024   0.4    224   224  78.68
    resnest50                        8192   3.2    224   224  81.03
    resnest101                       4096   1.6    224   256  82.83
    resnest200                       2048   0.8    256   320  83.84
    resnest269                       2048   0.8    320   416  84.54
    resnest50_fast_1s1x64d           8192   3.2    224   224  80.33
    resnest50_fast_2s1x64d           8192   3.2    224   224  80.53
    resnest50_fast_4s1x64d           8192   3.2    224   224  80.76
    resnest50_fast_1s2x40d           8192   3.2    224   224  80.59
    resnest50_fast_2s2x40d           8192   3.2    224   224  80.61
    resnest50_fast_4s2x40d           8192   3.2    224   224  81.14
    resnest50_fast_1s4x24d           8192   3.2    224   224  80.99

Where the paper differs from the code behind its figures, the default is the code's, and a key
selects the other: ``loss.smooth_over``, ``mix.per_sample``, ``model.dropout``, ``augment.policy``.
"""

from ml_collections import ConfigDict

from resnest_jax.config import default_config

# Model -> total batch, side of the training and of the test images.
SIZES = {
    "resnest14": (1024, 224, 224),
    "resnest26": (1024, 224, 224),
    "resnest50": (8192, 224, 224),
    "resnest101": (4096, 224, 256),
    "resnest200": (2048, 256, 320),
    "resnest269": (2048, 320, 416),
    "resnest50_fast_1s1x64d": (8192, 224, 224),
    "resnest50_fast_2s1x64d": (8192, 224, 224),
    "resnest50_fast_4s1x64d": (8192, 224, 224),
    "resnest50_fast_1s2x40d": (8192, 224, 224),
    "resnest50_fast_2s2x40d": (8192, 224, 224),
    "resnest50_fast_4s2x40d": (8192, 224, 224),
    "resnest50_fast_1s4x24d": (8192, 224, 224),
}


def get_config(name: str = "resnest50") -> ConfigDict:
    """Return the recipe of a model."""
    if name not in SIZES:
        raise ValueError(f"no recipe for {name!r}; choose one of {', '.join(SIZES)}")
    batch_size, train_size, test_size = SIZES[name]
    config = default_config("classification")
    config.update(
        {
            "model": {
                "name": name,
                # One section of the paper has 0.2 for all models; the code only from 200 layers up.
                "dropout": 0.2 if name in ("resnest200", "resnest269") else 0.0,
                "drop_block": 0.1,  # size 3
                "dtype": "bfloat16",
            },
            "dataset": "imagenet2012",
            "train_split": "train",
            "image_size": train_size,
            "eval_image_size": test_size,
            "eval_crop": "authors",  # or "0.875", as the paper writes
            "batch_size": batch_size,
            "epochs": 270.0,
            # Off-value eps / K as in the code; "others" is the paper's eps / (K - 1).
            "loss": {"label_smoothing": 0.1, "smooth_over": "all"},
            "augment": {
                # Crops of 320 px and more: at least a tenth of the image, bicubic.
                "crop": "efficientnet" if train_size >= 320 else "inception",
                "flip": True,
                # Before the crop. The PyTorch port has RandAugment(2, 12), 0.4 points worse.
                "policy": "autoaugment",
                "jitter": 0.4,
                "lighting": 0.1,
            },
            # One weight per batch as in the code (there a worker's 128 images, here all images);
            # the paper draws one per image.
            "mix": {"mixup": 0.2, "per_sample": False},
            "optimizer": {
                "base_learning_rate": 0.1,
                "warmup_epochs": 5.0,
                "nesterov": True,  # as in Gluon; the PyTorch port has plain momentum
                "weight_decay": 1e-4,
            },
            "parallel": {"batch_norm": "device"},  # as in the paper
            "loader": {"workers": 8, "max_unreadable": 100},
            "log_every_steps": 20,
            "checkpoint": {"every_steps": 500},
        }
    )
    return config
