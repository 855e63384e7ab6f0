"""Winograd's algorithm against XLA's convolution, in one chunk and in several."""

import os
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnest_jax import create_model, fold
from resnest_jax.models.layers import winograd
from resnest_jax.models.layers.convolution import conv2d


@pytest.mark.parametrize("tiles", [1, 10_000], ids=["chunks", "whole"])
@pytest.mark.parametrize(("size", "groups"), [((8, 8), 1), ((7, 9), 2), ((1, 2), 2)])
def test_value_and_gradients_are_those_of_the_convolution(monkeypatch, tiles, size, groups):
    monkeypatch.setattr(winograd, "CHUNK_TILES", tiles)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((6, *size, 4 * groups), np.float32))
    kernel = jnp.asarray(rng.standard_normal((3, 3, 4, 6 * groups), np.float32))
    cotangent = jnp.asarray(rng.standard_normal((6, *size, 6 * groups), np.float32))
    results = {}
    for implementation in ("winograd", "grouped"):

        def run(x, kernel, cotangent, implementation=implementation):
            conv = partial(conv2d, groups=groups, implementation=implementation)
            y, gradient = jax.vjp(lambda x, kernel: conv(x, kernel), x, kernel)
            return y, *gradient(cotangent)

        results[implementation] = jax.jit(run)(x, kernel, cotangent)
    for ours, expected in zip(results["winograd"], results["grouped"], strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)


def test_program_does_not_depend_on_the_cores(monkeypatch):
    x, kernel = jnp.ones((64, 16, 16, 4)), jnp.ones((3, 3, 4, 6))

    def program():
        def gradients(x, kernel):
            return jax.grad(lambda *args: winograd.conv3x3(*args).sum(), (0, 1))(x, kernel)

        return str(jax.make_jaxpr(gradients)(x, kernel))

    programs = []
    for cores in (1, 2, 64):
        monkeypatch.setattr(os, "cpu_count", lambda cores=cores: cores)
        programs.append(program())
    assert "dynamic_slice" in programs[0]  # in chunks
    assert programs[0] == programs[1] == programs[2]


def test_folded_kernels_are_transformed_and_logits_equal():
    """Stages 3 and 4 of this model have enough channels per group."""
    model = create_model("resnest14", num_classes=5)
    images = jax.random.normal(jax.random.key(0), (2, 64, 64, 3))
    variables = jax.jit(model.init)(jax.random.key(1), images)
    expected = jax.jit(model.apply)(variables, images)
    folded, folded_variables = fold(model, variables)
    assert "winograd" in folded_variables["params"]["stage4_block1"]["conv2"]["conv"]
    actual = jax.jit(folded.apply)(folded_variables, images)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)
    for field in ({"implementation": "grouped"}, {"platform": "tpu"}):
        plain, plain_variables = fold(model.clone(**field), variables)
        assert "kernel" in plain_variables["params"]["stage4_block1"]["conv2"]["conv"]
        actual = jax.jit(plain.apply)(plain_variables, images)
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)
