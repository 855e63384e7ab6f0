"""Heads on pooled regions: features of a box, then its class and its refinement."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype

from resnest_jax.models.detection.boxes import Weights
from resnest_jax.models.detection.fpn import xavier_init
from resnest_jax.models.detection.rpn import normal_init
from resnest_jax.models.layers.activation import relu
from resnest_jax.models.layers.convolution import Conv
from resnest_jax.models.layers.normalization import BatchNorm

ModuleDef = Callable[..., nn.Module]

CONVOLUTIONS = 4
BOX_WEIGHTS: Weights = (10.0, 10.0, 5.0, 5.0)  # of dx, dy, dw, dh


class BoxHead(nn.Module):
    """Four 3x3 convolutions with norm and ReLU, and a dense layer with ReLU.

    Call with pooled features (R, H, W, C), ``train``, and ``valid`` (R,) bool: the others have no
    part in the batch statistics. Returns (R, hidden). Training updates ``batch_stats``.

    Attributes:
      hidden: units of the dense layer.
      conv, norm: factories of the layers.
      dtype: dtype of the dense layer.
    """

    hidden: int = 1024
    conv: ModuleDef = Conv
    norm: ModuleDef = BatchNorm
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool = False, valid: jax.Array | None = None
    ) -> jax.Array:
        x = convolutions(CONVOLUTIONS, self.conv, self.norm, x, train, valid)
        # The authors' order is channel, row, column.
        x = jnp.moveaxis(x, -1, 1).reshape(x.shape[0], -1)
        dense = nn.Dense(self.hidden, dtype=self.dtype, kernel_init=xavier_init, name="fc")
        return relu(dense(x))


def convolutions(
    count: int,
    conv: ModuleDef,
    norm: ModuleDef,
    x: jax.Array,
    train: bool,
    valid: jax.Array | None,
) -> jax.Array:
    """Apply 3x3 convolutions with norm and ReLU, which become layers of the calling module."""
    for i in range(1, count + 1):
        x = conv(x.shape[-1], kernel_size=3, name=f"conv{i}")(x)
        x = relu(norm(name=f"bn{i}")(x, train, valid))
    return x


class BoxPredictor(nn.Module):
    """Class logits (R, num_classes + 1), background last, and deltas (R, 4 * num_classes).

    Call with the features of boxes (R, C). The deltas are dx, dy, dw, dh of the first class, then
    of the next. Both are float32 at least.

    Attributes:
      num_classes: without the background.
      class_agnostic: whether the deltas are (R, 4), for all classes alike.
    """

    num_classes: int
    class_agnostic: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        dtype = jnp.promote_types(x.dtype, jnp.float32)
        dense = partial(nn.Dense, dtype=dtype)
        logits = dense(self.num_classes + 1, kernel_init=normal_init, name="cls_score")(x)
        box_init = nn.initializers.normal(0.001)
        groups = 1 if self.class_agnostic else self.num_classes
        return logits, dense(4 * groups, kernel_init=box_init, name="bbox_pred")(x)


def stage_names(cascade_thresholds: tuple[float, ...]) -> list[str]:
    """Return the ends of the names of each stage's heads: "0", "1", ...; "" without a cascade."""
    return [str(i) for i in range(1 + len(cascade_thresholds))] if cascade_thresholds else [""]


def box_weights(stage: int) -> Weights:
    """Return the weights of the coder of boxes in a stage; later ones refine in smaller units."""
    dx, dy, dw, dh = ((1 + stage) * weight for weight in BOX_WEIGHTS)
    return dx, dy, dw, dh
