"""The two formulations of the paper, and their convolution."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnest_jax import SplitAttention
from resnest_jax.errors import InputError
from resnest_jax.models.layers.cardinality_major import (
    CardinalSplitAttention,
    from_radix_major,
    input_permutation,
)
from resnest_jax.models.layers.convolution import conv2d
from resnest_jax.models.layers.split_attention import radix_softmax


def randomize(variables, seed=0):
    """Make each leaf random, so that ones or zeros do not hide a permutation."""
    leaves, tree = jax.tree.flatten(variables)
    rng = np.random.default_rng(seed)
    leaves = [np.exp(0.3 * rng.standard_normal(x.shape)).astype(np.float32) for x in leaves]
    signs = [rng.choice([-1, 1], x.shape).astype(np.float32) for x in leaves]
    variables = tree.unflatten([x * s for x, s in zip(leaves, signs, strict=True)])
    variables["batch_stats"] = jax.tree.map(np.abs, variables["batch_stats"])
    return variables


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("cardinality", [1, 2, 4])
@pytest.mark.parametrize("radix", [1, 2, 4])
def test_formulations_agree(radix, cardinality, train):
    x = np.random.default_rng(1).standard_normal((3, 7, 6, 32)).astype(np.float32)
    radix_major = SplitAttention(64, radix, cardinality)
    variables = randomize(jax.jit(radix_major.init)(jax.random.key(0), x))
    cardinal = CardinalSplitAttention(64, radix, cardinality)
    moved = from_radix_major(variables, radix, cardinality)
    shapes = jax.eval_shape(cardinal.init, jax.random.key(0), x)
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), moved, shapes)

    x_moved = x[..., input_permutation(32, radix, cardinality)]
    actual, updates = radix_major.apply(variables, x, train, mutable=["batch_stats"])
    expected, updates_moved = cardinal.apply(moved, x_moved, train, mutable=["batch_stats"])
    scale = np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5 * scale)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max()),
        from_radix_major(updates, radix, cardinality),
        updates_moved,
    )


def test_attention_is_a_distribution_over_splits():
    x = np.random.default_rng(0).standard_normal((2, 5, 5, 16)).astype(np.float32)
    module = SplitAttention(16, radix=4, cardinality=2)
    variables = randomize(module.init(jax.random.key(0), x))
    _, state = module.apply(variables, x, mutable=["intermediates"])
    (attention,) = state["intermediates"]["attention"]
    assert attention.shape == (2, 4, 16)
    np.testing.assert_allclose(attention.sum(1), 1, rtol=1e-6)


@pytest.mark.parametrize("groups", [1, 2, 4, 16])
@pytest.mark.parametrize(
    ("size", "strides", "dilation"),
    [
        (3, 1, 1),
        (3, 2, 1),
        (3, 1, 2),
        (3, 1, 3),
        (3, 2, 3),
        (7, 2, 1),
        (3, 1, 8),
        (3, 1, 9),
        (1, 1, 1),
    ],
)
def test_convolution_implementations_agree(groups, size, strides, dilation):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 9, 8, 16)).astype(np.float32)
    kernel = rng.standard_normal((size, size, 16 // groups, 32)).astype(np.float32)
    expected = direct_convolution(x, kernel, strides, dilation, groups)
    cotangent = rng.standard_normal(expected.shape).astype(np.float32)

    def value_and_gradients(implementation):
        def run(x, kernel, cotangent):
            conv = partial(conv2d, implementation=implementation)
            y, vjp = jax.vjp(lambda x, k: conv(x, k, strides, dilation, groups), x, kernel)
            return y, *vjp(cotangent)

        return jax.jit(run)(x, kernel, cotangent)

    of_xla = value_and_gradients("grouped")
    np.testing.assert_allclose(of_xla[0], expected, rtol=1e-4, atol=1e-4)
    for implementation in ("split", "padded", "patches", "taps", "auto", "split,winograd,grouped"):
        for a, b in zip(value_and_gradients(implementation), of_xla, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("strides", [1, 2])
def test_convolutions_in_a_loop_have_the_form_that_is_fast_on_cpu(strides):
    """XLA:CPU has fast routines for one order of axes, and turns others into it outside loops."""

    def loss(x, kernel):
        return jnp.sum(jnp.sin(conv2d(x, kernel, strides, implementation="padded")))

    def gradients(images, kernel):
        return jax.lax.map(lambda x: jax.grad(loss, (0, 1))(x, kernel), images)

    shapes = (3, 2, 9, 8, 4), (3, 3, 4, 6)
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    program = jax.jit(gradients).lower(*arguments).compile().as_text()
    orders = re.findall(r" convolution\(.*dim_labels=(\w+->\w+)", program)
    assert len(orders) == 3
    assert set(orders) == {"b01f_01io->b01f"}


def direct_convolution(x, kernel, strides, dilation, groups):
    """Compute a convolution as a sum over the taps of the kernel, group by group."""
    size, fan_in, features = kernel.shape[0], kernel.shape[2], kernel.shape[3]
    pad = dilation * (size - 1) // 2
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    height, width = -(-x.shape[1] // strides), -(-x.shape[2] // strides)
    out = np.zeros((x.shape[0], height, width, features))
    for group in range(groups):
        inputs = slice(group * fan_in, (group + 1) * fan_in)
        outputs = slice(group * features // groups, (group + 1) * features // groups)
        for i in range(size):
            for j in range(size):
                rows = slice(i * dilation, i * dilation + x.shape[1], strides)
                columns = slice(j * dilation, j * dilation + x.shape[2], strides)
                tap = padded[:, rows, columns, inputs][:, :height, :width]
                out[..., outputs] += tap @ kernel[i, j, :, outputs]
    return out


@pytest.mark.parametrize(("groups", "convolutions"), [(1, 1), (2, 2), (8, 8), (16, 1)])
def test_convolution_for_tpu_is_split_into_up_to_eight(groups, convolutions):
    x = jax.random.normal(jax.random.key(0), (2, 9, 9, 32))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 32 // groups, 48))
    convolve = partial(conv2d, groups=groups, platform="tpu")
    assert str(jax.make_jaxpr(convolve)(x, kernel)).count("conv_general_dilated[") == convolutions
    expected = conv2d(x, kernel, groups=groups, implementation="grouped")
    np.testing.assert_allclose(convolve(x, kernel), expected, rtol=1e-5, atol=1e-4)


def test_radix_that_does_not_divide_is_named():
    x = jnp.zeros((2, 8, 8, 16))
    with pytest.raises(InputError, match=r"3 groups.* must divide the 16 input"):
        SplitAttention(48, radix=3).init(jax.random.key(0), x)
    with pytest.raises(InputError, match=r"radix >= 1.*got radix 0"):
        SplitAttention(16, radix=0).init(jax.random.key(0), x)


def test_attention_in_bfloat16_is_rounded_once():
    gate = 8 * jax.random.normal(jax.random.key(0), (4, 1, 1, 48), jnp.bfloat16)
    z = np.asarray(gate, np.float64).reshape(4, 2, 3, 8)
    expected = np.exp(z) / np.exp(z).sum(2, keepdims=True)
    attention = radix_softmax(gate, 3, 2)
    assert attention.dtype == jnp.bfloat16
    ours = np.asarray(attention, np.float64).reshape(4, 3, 2, 8).swapaxes(1, 2)
    np.testing.assert_allclose(ours, expected, rtol=2**-8)
