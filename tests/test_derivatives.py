"""Derivatives of both modes against those of XLA's own operations and against differences."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import resnest_jax
from resnest_jax.models.layers.convolution import conv2d
from resnest_jax.models.layers.normalization import BatchNorm
from resnest_jax.models.layers.pooling import average_pool, max_pool

TINY = {"planes": (8, 8, 8, 8), "stem_width": 4, "num_classes": 3}


@pytest.fixture(autouse=True)
def _double():
    """Compute in float64, so that differences between two algorithms are seen."""
    with jax.enable_x64(True):
        yield


def layers(implementation, x, kernel):
    """Convolve and pool: by one implementation, or by XLA's own operations."""
    if implementation == "xla":
        x = conv2d(x, kernel, groups=2, implementation="grouped")
        window = (3, 3), (2, 2), ((1, 1), (1, 1))
        return nn.max_pool(nn.avg_pool(jnp.sin(x), *window), *window)
    x = conv2d(x, kernel, groups=2, implementation=implementation)
    return max_pool(average_pool(jnp.sin(x), 2, "cpu"), "cpu")


def derivatives(implementation, x, kernel, dx, dkernel):
    """Return derivatives of first and second order, in every order of the two modes."""
    primals, tangents = (x, kernel), (dx, dkernel)

    def loss(x, kernel):
        return (layers(implementation, x, kernel) ** 2).sum()

    def directional(*primals):
        return jax.jvp(loss, primals, tangents)[1]

    def along_gradient(*primals):
        gradients = jax.grad(loss, (0, 1))(*primals)
        return sum(jnp.vdot(g, t) for g, t in zip(gradients, tangents, strict=True))

    gradient = jax.grad(jax.checkpoint(loss), (0, 1))
    return {
        "forward": jax.jvp(partial(layers, implementation, x), (kernel,), (dkernel,)),
        "forward over reverse": jax.jvp(gradient, primals, tangents),
        "reverse over forward": jax.grad(directional, (0, 1))(*primals),
        "reverse over reverse": jax.grad(along_gradient, (0, 1))(*primals),
        "per image": jax.vmap(jax.grad(loss, 1), (0, None))(x[:, None], kernel),
        "per kernel": jax.vmap(jax.grad(loss), (None, 0))(x, jnp.stack([kernel, dkernel])),
    }


@pytest.mark.parametrize("implementation", ["winograd", "padded", "padded,padded,winograd"])
def test_layers_have_every_derivative(implementation):
    rng = np.random.default_rng(0)
    shapes = ((2, 6, 5, 4), (3, 3, 2, 6)) * 2
    arguments = [jnp.asarray(rng.standard_normal(shape)) for shape in shapes]
    ours, expected = (
        jax.jit(partial(derivatives, name))(*arguments) for name in (implementation, "xla")
    )
    for name, value in expected.items():
        close = partial(np.testing.assert_allclose, rtol=1e-9, err_msg=name)
        jax.tree.map(close, ours[name], value)


@pytest.mark.parametrize(
    "fields",
    [
        {"planes": (64, 64, 64, 64), "remat": (1, 2)},
        {"radix": 1, "cardinality": 2, "output_stride": 8, "drop_block": 0.1, "drop_path": 0.1},
        {"radix": 0, "attention": "sk", "deep_stem": False, "dtype": "bfloat16"},
    ],
    ids=["winograd", "dilated", "sk"],
)
def test_models_have_forward_mode(fields):
    model = resnest_jax.create_model("resnest14", **TINY | fields)
    images = jax.ShapeDtypeStruct((4, 64, 64, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)

    def loss(variables, images):
        rngs = {"dropout": jax.random.key(0)}
        logits, _ = model.apply(variables, images, True, mutable=["batch_stats"], rngs=rngs)
        return (logits**2).sum()

    def products(variables, images):
        gradient = jax.grad(loss)
        return jax.jvp(gradient, (variables, images), (variables, images))[1]

    assert jax.tree.structure(jax.eval_shape(products, variables, images)) == jax.tree.structure(
        variables
    )


def test_derivative_of_logits_is_that_of_differences():
    model = resnest_jax.create_model("resnest14", **TINY, dtype="float64")
    rng = np.random.default_rng(0)
    images, slope = (jnp.asarray(rng.standard_normal((1, 32, 32, 3))) for _ in range(2))
    variables = jax.jit(model.init)(jax.random.key(0), images)

    def logits(t):
        return model.apply(variables, images + t * slope)

    forward = jax.jit(lambda t: jax.jvp(logits, (t,), (1.0,)))
    step = 1e-6
    before, after = (forward(0.3 + sign * step)[0] for sign in (-1, 1))
    expected = (after - before) / (2 * step)
    np.testing.assert_allclose(forward(0.3)[1], expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("masked", [False, True])
def test_batch_norm_has_the_derivatives_of_its_formula(masked):
    """Gradient, forward mode and second derivative, by x, scale and bias."""
    x = np.random.default_rng(0).normal(1, 2, (6, 3, 2, 4))
    mask = jnp.arange(6) % 3 > 0 if masked else None
    weights = jnp.sin(jnp.arange(x.size).reshape(x.shape))

    def ours(x, scale, bias):
        variables = {
            "params": {"scale": scale, "bias": bias},
            "batch_stats": {"mean": jnp.zeros(4), "var": jnp.ones(4)},
        }
        y, updates = BatchNorm(dtype=jnp.float64).apply(
            variables, x, True, mask, mutable=["batch_stats"]
        )
        return jnp.sum(weights * y) + jnp.sum(updates["batch_stats"]["var"] ** 2)

    def formula(x, scale, bias):
        counted = x if mask is None else x[np.arange(6) % 3 > 0]
        moments = {"axis": (0, 1, 2), "keepdims": True}
        distance = x - counted.mean(**moments)
        y = distance / jnp.sqrt(counted.var(**moments) + 1e-5)
        y = y * scale.reshape(1, 1, 1, -1) + bias.reshape(1, 1, 1, -1)
        return jnp.sum(weights * y) + jnp.sum((0.9 + 0.1 * counted.var(**moments, ddof=1)) ** 2)

    args = x, jnp.linspace(0.5, 2, 4), jnp.linspace(-1, 1, 4)
    tangents = jax.tree.map(jnp.cos, args)

    def derivatives(function):
        gradient = jax.grad(function, (0, 1, 2))
        forward = jax.jvp(function, args, tangents)
        return gradient(*args), forward, jax.jvp(gradient, args, tangents)[1]

    for actual, expected in zip(
        jax.tree.leaves(derivatives(ours)), jax.tree.leaves(derivatives(formula)), strict=True
    ):
        np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-9)
