"""Normalization of input images."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from resnest_jax.errors import InputError

# Of ImageNet's training images, RGB in 0..255; published weights expect them.
MEAN = np.array([123.675, 116.28, 103.53], np.float32)
STD = np.array([58.395, 57.12, 57.375], np.float32)


def normalize(images: jax.Array) -> jax.Array:
    """Normalize RGB images (B, H, W, 3), 0..255 of any dtype, to mean 0 and variance 1, float32."""
    return (images.astype(jnp.float32) - MEAN[None, None, None]) / STD[None, None, None]


def check_rgb(variables: Mapping[str, Any]) -> None:
    """Raise InputError if the variables are those of a model of other than RGB images."""
    channels = variables["params"]["stem"]["conv1"]["kernel"].shape[2]
    if channels != 3:
        raise InputError(
            f"only models of RGB images can be exported; the model takes {channels} channels"
        )
