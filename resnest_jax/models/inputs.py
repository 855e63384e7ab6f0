"""Channels and normalization of input images."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from resnest_jax.errors import InputError

# Of ImageNet's training images, RGB in 0..255; published weights expect them.
MEAN = np.array([123.675, 116.28, 103.53], np.float32)
STD = np.array([58.395, 57.12, 57.375], np.float32)
# Mean and standard deviation of grey, RGB and RGBA images. An opaque pixel has an opacity of 0.
STATISTICS = {
    1: (MEAN.mean(keepdims=True), STD.mean(keepdims=True)),
    3: (MEAN, STD),
    4: (np.append(MEAN, np.float32(255)), np.append(STD, STD.mean())),
}

# Of the RGB images that the authors' detectors take: not quite the values above.
DETECTION = tuple(
    np.array(values, np.float32) for values in ((123.68, 116.779, 103.939), (58.393, 57.12, 57.375))
)

MULTIPLE = 32  # of the sides of padded images: the largest stride of the backbones


def normalize(images: jax.Array) -> jax.Array:
    """Normalize images (B, H, W, C), 0..255 of any dtype, to mean 0 and variance 1, float32.

    C is 1 for grey, 3 for RGB, 4 for RGBA.
    """
    return _normalize(images, STATISTICS[images.shape[-1]])


def normalize_padded(images: jax.Array, sizes: jax.Array) -> jax.Array:
    """Normalize RGB images (B, H, W, 3) of detection, padded right and below, to float32.

    The padding becomes 0, as in detectron2. ``sizes`` (B, 2) are heights and widths without it.
    """
    rows, columns = (
        jnp.arange(images.shape[1 + axis])[None] < sizes[:, axis, None] for axis in (0, 1)
    )
    inside = rows[:, :, None, None] & columns[:, None, :, None]
    return jnp.where(inside, _normalize(images, DETECTION), 0.0)


def _normalize(images: jax.Array, statistics: tuple[np.ndarray, ...]) -> jax.Array:
    mean, std = statistics
    return (images.astype(jnp.float32) - mean[None, None, None]) / std[None, None, None]


def padded(size: tuple[int, int]) -> tuple[int, int]:
    """Return height and width, each rounded up to a multiple of 32."""
    height, width = (-(-side // MULTIPLE) * MULTIPLE for side in size)
    return height, width


def denormalize(images: np.ndarray) -> np.ndarray:
    """Return normalized images (B, H, W, C) in 0..255 again."""
    mean, std = STATISTICS[images.shape[-1]]
    return images * std + mean


def input_channels(variables: Mapping[str, Any]) -> int:
    """Return the channels of the images that a model with these variables takes."""
    params = variables["params"]
    return params.get("backbone", params)["stem"]["conv1"]["kernel"].shape[2]


def check_rgb(variables: Mapping[str, Any]) -> None:
    """Raise InputError if the variables are those of a model of other than RGB images."""
    channels = input_channels(variables)
    if channels != 3:
        raise InputError(
            f"only models of RGB images can be exported; the model takes {channels} channels"
        )
