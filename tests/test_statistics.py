"""Statistics of batch norms that are recomputed after the last step.

That a run with them can be killed, and that two processes equal one, test_second_task.py says.
"""

import helpers
import jax
import numpy as np
import optax
import pytest
from small_net import small_task

from resnest_jax import recipe
from resnest_jax.errors import InputError
from resnest_jax.models.inputs import normalize
from resnest_jax.models.layers.normalization import BatchNorm
from resnest_jax.training.mesh import make_mesh
from resnest_jax.training.run import Run, TrainOptions
from resnest_jax.training.state import create_state
from resnest_jax.training.statistics import recompute_statistics
from resnest_jax.training.task import KEPT


def batches(count):
    rng = np.random.default_rng(0)
    for i in range(count):
        images = rng.integers(0, 200 + 25 * i, (16, 32, 32, 3)).astype(np.uint8)
        yield {"image": images, "label": rng.integers(0, 10, 16).astype(np.int32)}


def first_layer(images, kernel):
    """Return mean and unbiased variance of the first convolution's output, by NumPy."""
    x = np.pad(np.asarray(normalize(images), np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (1, 2))[:, ::2, ::2]
    out = np.einsum("bijcyx,yxcd->bijdx", windows, kernel, optimize=True).sum(-1)
    return out.mean((0, 1, 2)), out.var((0, 1, 2), ddof=1)


def make_run(norm="batch", **options):
    """Return a run of the small network, and its state with statistics of their own."""
    task = small_task(norm=norm)
    chosen = TrainOptions(0, 10, 5, 16, 1, 5, recompute_batch_norm=3, **options)
    run = Run(task, None, optax.sgd(0.1), lambda step: 0.1, chosen, mesh=make_mesh())
    variables = dict(jax.jit(task.init)(jax.random.key(0)))
    variables["batch_stats"] = jax.tree.map(lambda x: x + 0.3, variables["batch_stats"])
    return run, create_state(variables, run.optimizer, ema=options.get("ema_decay", 0) > 0)


@pytest.mark.parametrize("options", [{}, {"accumulate": 2, "ema_decay": 0.9}])
def test_averages_against_numpy(options):
    run, state = make_run(**options)
    accumulate = run.options.accumulate
    kernel = np.asarray(state.params["conv1"]["kernel"], np.float64)
    after = recompute_statistics(run, state, batches(3))
    found = after.variables["batch_stats"]["bn1"]
    split = (jax.device_count(), accumulate, -1, 32, 32, 3)  # each part takes from every device
    parts = [
        first_layer(images.reshape(-1, 32, 32, 3), kernel)
        for batch in batches(3)
        for images in np.moveaxis(batch["image"].reshape(split), 1, 0)
    ]
    mean, var = np.mean(parts, 0)
    np.testing.assert_allclose(found["mean"], mean, atol=1e-5)
    np.testing.assert_allclose(found["var"], var, rtol=1e-4)
    for old, new in zip(jax.tree.leaves(state.params), jax.tree.leaves(after.params), strict=True):
        np.testing.assert_array_equal(old, new)
    if state.ema is not None:  # only what is evaluated
        np.testing.assert_array_equal(
            after.batch_stats["bn1"]["mean"], state.batch_stats["bn1"]["mean"]
        )


def test_frozen_statistics_stay_bit_for_bit():
    run, state = make_run(norm="frozen")
    after = recompute_statistics(run, state, batches(3))
    jax.tree.map(np.testing.assert_array_equal, after.batch_stats, state.batch_stats)


def test_batch_norms_keep_the_part_that_training_reckons_with():
    assert BatchNorm().momentum == KEPT


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"recompute_batch_norm": -1}, "recompute_batch_norm must not be negative"),
        ({"recompute_batch_norm": 2, "model__norm": "frozen"}, "needs model.norm 'batch'"),
        ({"recompute_batch_norm": 2, "patience": 3}, "patience 3"),
    ],
)
def test_wrong_values_are_named(overrides, words):
    with pytest.raises(InputError, match=words):
        recipe.build(helpers.tiny_config(**overrides))
