"""Feature pyramid network (arXiv 1612.03144) with batch norm."""

from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from resnest_jax.errors import InputError
from resnest_jax.models.layers.convolution import Conv
from resnest_jax.models.layers.normalization import BatchNorm

ModuleDef = Callable[..., nn.Module]

LEVELS = (2, 3, 4, 5)  # of the backbone

# Caffe2's Xavier: U(-a, a) with a = sqrt(3 / fan_in).
xavier_init = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")


class FPN(nn.Module):
    """Feature pyramid on a backbone's endpoints, as in the authors' detectors.

    Every level has a lateral 1x1 and an output 3x3 convolution, each with a norm and no activation.
    The lateral map of the level above is doubled (nearest) and added between the two.

    Call with ``c2`` to ``c5``, (B, H/4, W/4, C2) to (B, H/32, W/32, C5), such as
    ``ResNeSt.features`` returns; other keys are ignored. Returns ``p2`` to ``p6`` of ``features``
    channels, with the sizes of ``c2`` to ``c5``; ``p6`` is every second pixel of ``p5``. Training
    updates ``batch_stats``.

    Attributes:
      features: channels of every level.
      conv, norm: factories of the layers, for example ``functools.partial(Conv, dtype=...)``.

    Raises:
      InputError: if an endpoint is not half as large as the one below, rounded up.
    """

    features: int = 256
    conv: ModuleDef = Conv
    norm: ModuleDef = BatchNorm

    @nn.compact
    def __call__(self, endpoints: Mapping[str, jax.Array], train: bool = False) -> dict:
        def layer(x: jax.Array, name: str, level: int, **settings: int) -> jax.Array:
            conv = self.conv(
                self.features, **settings, kernel_init=xavier_init, name=f"{name}_conv{level}"
            )
            return self.norm(name=f"{name}_bn{level}")(conv(x), train)

        pyramid, above = {}, None
        for level in reversed(LEVELS):
            x = layer(endpoints[f"c{level}"], "lateral", level)
            if above is not None:
                x = x + _doubled(above, x.shape)
            pyramid[f"p{level}"] = layer(x, "output", level, kernel_size=3)
            above = x
        pyramid["p6"] = pyramid["p5"][:, ::2, ::2]
        return dict(sorted(pyramid.items()))


def _doubled(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Repeat every pixel of (B, H, W, C) in both directions, cut to the shape."""
    _, height, width, _ = shape
    if x.shape[1:3] != (-(-height // 2), -(-width // 2)):
        raise InputError(
            f"each endpoint of an FPN must be half as large as the one below; got {x.shape[1:3]} "
            f"above {(height, width)}"
        )
    x = jnp.repeat(jnp.repeat(x, 2, 1), 2, 2)
    return x[:, :height, :width]
