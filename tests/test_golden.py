"""The network against the authors' PyTorch model."""

import os
import subprocess
import sys

import golden
import helpers
import jax
import numpy as np
import optax
import pytest

import resnest_jax

TOLERANCE = 1e-4  # of the largest value of the reference

# The reference's own rounding: in float64 the authors' architecture gives 0.1108377 here, as this
# package does in float32; the stored float32 value is 0.1106524.
LOOSER_GRADIENTS = {"layer1.0.conv2.fc1.weight": 2e-3}
# Float32 is not enough here: gates reach 1,000 and some pairs of them differ by less than 1. So a
# rounding of 1.5e-7 in SelectiveKernel's conv_reduce becomes 1e-4 of the largest logit. XLA rounds
# by 1.5e-7 since jax 0.12, by 0.5e-7 before. The reference's own rounding becomes 0.4e-4.
IN_FLOAT64 = ["skresnet50@65x64"]


def assert_close(actual, expected, tolerance=TOLERANCE):
    error = np.max(np.abs(np.asarray(actual) - expected)) / np.max(np.abs(expected))
    assert error <= tolerance, f"relative error {error:.2e}"


@pytest.mark.parametrize("case", golden.CASES)
def test_inference(case):
    name, fields, shape, seed = golden.CASES[case]
    model, variables = golden.build(name, fields)
    params = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert params == golden.golden(case, "params")

    @jax.jit
    def forward(variables, images):
        endpoints = model.apply(variables, images, method="features")
        return model.apply(variables, images), endpoints

    logits, endpoints = forward(variables, golden.images(shape, seed))
    assert_close(logits, golden.golden(case, "logits"))
    for name in ("c2", "c3", "c4", "c5"):
        endpoint = np.asarray(endpoints[name])
        assert endpoint.shape == tuple(golden.golden(case, f"{name}_shape"))
        assert_close(endpoint[..., :8].mean((1, 2)), golden.golden(case, f"{name}_mean"))
        assert_close(endpoint[:, -1, -1, :8], golden.golden(case, f"{name}_corner"))
        assert_close(endpoint.std(), golden.golden(case, f"{name}_std"))


@pytest.mark.parametrize(
    "case",
    [*golden.MORE_CASES, *(pytest.param(c, marks=pytest.mark.slow) for c in golden.SLOW_CASES)],
)
def test_logits(case):
    name, shape, seed = (golden.MORE_CASES | golden.SLOW_CASES)[case]
    double = case in IN_FLOAT64
    with jax.enable_x64(double):
        model, variables = golden.build(name, {"dtype": "float64"} if double else {})
        logits = jax.jit(model.apply)(variables, golden.images(shape, seed))
    assert logits.dtype == (np.float64 if double else np.float32)
    assert_close(logits, golden.MORE[case])


@pytest.mark.parametrize("name", ["resnest50_fast_2s2x40d", "seresnet50", "skresnet50"])
def test_float32_rounds_float64(name):
    """In a network of one block per stage, which does not amplify the rounding."""
    images = golden.images((2, 64, 65), 30)
    logits = {}
    for dtype in ("float32", "float64"):
        with jax.enable_x64(dtype == "float64"):
            model, variables = golden.build(name, {"stage_sizes": (1, 1, 1, 1), "dtype": dtype})
            logits[dtype] = np.asarray(jax.jit(model.apply)(variables, images))
        assert logits[dtype].dtype == dtype
    assert_close(logits["float32"], logits["float64"], 1e-5)


def test_logits_as_users_compile(tmp_path):
    """Not at the optimisation level of these tests, which compiles fast."""
    case = next(iter(golden.CASES))
    code = f"""
import sys
import golden, jax, numpy as np
name, fields, shape, seed = golden.CASES[{case!r}]
model, variables = golden.build(name, fields)
np.save(sys.argv[1], jax.jit(model.apply)(variables, golden.images(shape, seed)))
"""
    subprocess.run(
        [sys.executable, "-c", code, tmp_path / "logits.npy"],
        cwd=helpers.ROOT,
        env=os.environ | {"XLA_FLAGS": "", "PYTHONPATH": str(helpers.ROOT / "tests")},
        check=True,
    )
    assert_close(np.load(tmp_path / "logits.npy"), golden.golden(case, "logits"))


# With eight devices "auto" takes none of these; with one it does.
ON_ONE_DEVICE = ["winograd", "padded,padded,winograd"]


def test_logits_by_winograd():
    case = next(iter(golden.CASES))
    name, fields, shape, seed = golden.CASES[case]
    model, variables = golden.build(name, fields | {"implementation": "winograd"})
    logits = jax.jit(model.apply)(variables, golden.images(shape, seed))
    assert_close(logits, golden.golden(case, "logits"))


@pytest.mark.parametrize("implementation", ["auto", *ON_ONE_DEVICE])
def test_training(implementation):
    case, (name, fields, shape, seed) = golden.TRAIN_CASE
    model, variables = golden.build(name, fields | {"implementation": implementation})
    labels = 7 * np.arange(shape[0])

    def loss_fn(params, images):
        logits, updates = model.apply(
            variables | {"params": params}, images, train=True, mutable=["batch_stats"]
        )
        targets = optax.smooth_labels(jax.nn.one_hot(labels, 1000), 0.1)
        return optax.softmax_cross_entropy(logits, targets).mean(), (logits, updates)

    step = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))
    (loss, (logits, updates)), grads = step(variables["params"], golden.images(shape, seed))
    assert_close(logits, golden.golden(case, "logits"))
    np.testing.assert_allclose(loss, golden.golden(case, "loss"), rtol=1e-5)

    stats = updates["batch_stats"]
    torch_grads = resnest_jax.to_torch({"params": grads, "batch_stats": stats}, model)
    checked = 0
    for key, value in torch_grads.items():
        if f"{case}/gradnorm/{key}" in golden.FILE:
            expected = golden.golden(case, f"gradnorm/{key}")
            rtol = LOOSER_GRADIENTS.get(key, 1e-3)
            # The gradient of a bias before a batch norm is only rounding: hence atol.
            np.testing.assert_allclose(
                np.linalg.norm(value), expected, rtol=rtol, atol=1e-6, err_msg=key
            )
            checked += 1
        if f"{case}/after/{key}" in golden.FILE:
            assert_close(value.ravel()[:8], golden.golden(case, f"after/{key}"))
            checked += 1
    assert checked == len(jax.tree.leaves(variables))
