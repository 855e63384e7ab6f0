"""The pools against flax's; the CPU forms are written without them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnest_jax.models.layers.pooling import average_pool, max_pool, shortcut_pool


def _draw(rng, shape):
    """Draw few different values, so that many windows have several equal maxima."""
    return jnp.asarray(rng.integers(0, 3, shape).astype(np.float32))


@pytest.mark.parametrize("size", [(8, 8), (9, 7), (6, 11)])
@pytest.mark.parametrize(
    ("ours", "flax"),
    [
        (max_pool, lambda x: nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))),
        (
            lambda x: average_pool(x, 2),
            lambda x: nn.avg_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1))),
        ),
        (
            lambda x: average_pool(x, 1),
            lambda x: nn.avg_pool(x, (3, 3), (1, 1), ((1, 1), (1, 1))),
        ),
        (
            lambda x: average_pool(x, 3),
            lambda x: nn.avg_pool(x, (3, 3), (3, 3), ((1, 1), (1, 1))),
        ),
        (
            lambda x: shortcut_pool(x, 2),
            lambda x: nn.avg_pool(x, (2, 2), (2, 2), "SAME", count_include_pad=False),
        ),
    ],
    ids=["max", "average_2", "average_1", "average_3", "shortcut"],
)
def test_pools_and_their_gradients_are_those_of_flax(ours, flax, size):
    rng = np.random.default_rng(0)
    x = _draw(rng, (2, *size, 3))
    y, gradient = jax.vjp(ours, x)
    expected, expected_gradient = jax.vjp(flax, x)
    np.testing.assert_allclose(y, expected, rtol=1e-6)
    cotangent = jnp.asarray(rng.standard_normal(y.shape, np.float32))
    (dx,), (expected_dx,) = gradient(cotangent), expected_gradient(cotangent)
    np.testing.assert_allclose(dx, expected_dx, rtol=1e-5, atol=1e-6)
