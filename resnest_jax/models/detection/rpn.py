"""Head of the region proposal network (arXiv 1506.01497)."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from resnest_jax.models.layers.activation import relu
from resnest_jax.models.layers.convolution import Conv

# As the authors', for all layers of the RPN and of the predictor's classes.
normal_init = nn.initializers.normal(0.01)


class RPNOutput(NamedTuple):
    """Of each level with A anchors: the outputs of the head for B images, and the anchors.

    Attributes:
      logits: (B, A).
      deltas: (B, A, 4).
      anchors: (A, 4).
    """

    logits: list[jax.Array]
    deltas: list[jax.Array]
    anchors: list[jax.Array]


class RPNHead(nn.Module):
    """A 3x3 convolution and ReLU, and a 1x1 for objectness and one for boxes; for all levels.

    Call with the map of a level (B, H, W, C). Returns logits (B, H, W, A) and deltas
    (B, H, W, 4 * A), dx, dy, dw, dh of the first anchor, then of the next; float32 at least.

    Attributes:
      anchors: A, anchors of each pixel.
      conv: factory of convolutions.
    """

    anchors: int = 3
    conv: Callable[..., nn.Module] = Conv

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        conv = partial(
            self.conv, use_bias=True, kernel_init=normal_init, bias_init=nn.initializers.zeros
        )
        x = relu(conv(x.shape[-1], kernel_size=3, name="conv")(x))
        logits = conv(self.anchors, name="objectness")(x)
        deltas = conv(4 * self.anchors, name="deltas")(x)
        wide = jnp.promote_types(x.dtype, jnp.float32)
        return logits.astype(wide), deltas.astype(wide)
