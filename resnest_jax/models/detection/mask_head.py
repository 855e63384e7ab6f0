"""Heads on pooled regions for masks: features, and the mask of a class (arXiv 1703.06870)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype

from resnest_jax.models.detection.roi_heads import ModuleDef, convolutions
from resnest_jax.models.layers.activation import relu
from resnest_jax.models.layers.convolution import Conv
from resnest_jax.models.layers.normalization import BatchNorm

# The authors' normal for a transposed kernel (k, k, C_out, C_in), as torch counts its fan-out.
deconv_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class MaskHead(nn.Module):
    """3x3 convolutions with norm and ReLU, then a transposed one that doubles the sides, and ReLU.

    Call with pooled features (R, H, W, C), ``train``, and ``valid`` (R,) bool: the others have no
    part in the batch statistics. Returns (R, 2 * H, 2 * W, C). Training updates ``batch_stats``.

    Attributes:
      convolutions: number of the 3x3 convolutions.
      conv, norm: factories of the layers.
      dtype: dtype of the transposed convolution.
    """

    convolutions: int = 4
    conv: ModuleDef = Conv
    norm: ModuleDef = BatchNorm
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool = False, valid: jax.Array | None = None
    ) -> jax.Array:
        x = convolutions(self.convolutions, self.conv, self.norm, x, train, valid)
        return relu(Doubling(dtype=self.dtype, name="deconv")(x))


class Doubling(nn.Module):
    """Transposed 2x2 convolution with stride 2 and bias: (R, H, W, C) -> (R, 2 * H, 2 * W, C)."""

    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        regions, height, width, channels = x.shape
        kernel = self.param("kernel", deconv_init, (2, 2, channels, channels), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        x, kernel, bias = (array.astype(self.dtype) for array in (x, kernel, bias))
        # Every pixel becomes 2 x 2 pixels, which no other pixel reaches.
        x = jnp.einsum("nyxi,aboi->nyaxbo", x, kernel)
        return x.reshape(regions, 2 * height, 2 * width, channels) + bias[None, None, None]


class MaskPredictor(nn.Module):
    """Logits (R, H, W) of the masks of regions, each of its own class; float32 at least.

    Call with the features of regions (R, H, W, C) and their classes (R,). The masks of the other
    classes are not computed.
    """

    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array, classes: jax.Array) -> jax.Array:
        shape = (1, 1, x.shape[-1], self.num_classes)
        kernel = self.param("kernel", nn.initializers.normal(0.001), shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.num_classes,), jnp.float32)
        logits = jnp.einsum("nyxc,cn->nyx", x, kernel[0, 0][:, classes])
        return logits + bias[classes][:, None, None]
