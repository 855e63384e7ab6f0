"""Three steps of the trainer against the authors' code in PyTorch."""

import jax
import numpy as np
import pytest
import segmentation_golden as golden

from resnest_jax.models.inputs import denormalize
from resnest_jax.tasks.segmentation.task import Segmentation
from resnest_jax.training.optimizer import make_optimizer, make_schedule
from resnest_jax.training.run import Run, TrainOptions
from resnest_jax.training.state import create_state
from resnest_jax.training.step import make_train_step
from resnest_jax.weights.torch_names import to_torch

HEADS = ("^(head|auxiliary)/", 10.0)


@pytest.mark.slow  # it compiles the gradient of a ResNeSt-50
def test_three_steps():
    """SGD with weight decay on all, ten times the rate for the heads, poly schedule."""
    ((name, case),) = golden.cases("steps").items()
    model, variables = golden.build(case, dropout=0.0)
    total = case["epochs"] * case["iters_per_epoch"]
    schedule = make_schedule(
        kind="poly",
        base_learning_rate=case["base_lr"] * 256 / case["n"],
        batch_size=case["n"],
        total_steps=total,
        warmup_steps=0,
    )
    optimizer = make_optimizer(
        schedule,
        name="sgd",
        momentum=0.9,
        nesterov=False,
        weight_decay=1e-4,
        decay=".*",
        lr_mults=(HEADS,),
    )
    options = TrainOptions(
        seed=0, total_steps=total, steps_per_epoch=2.0, batch_size=4, log_every=1, eval_every=2
    )
    task = Segmentation(model, case["h"], tuple(map(str, range(case["nclass"]))))
    run = Run(task, None, optimizer, schedule, options)
    step = jax.jit(make_train_step(run))
    state, losses = create_state(variables, optimizer), []
    stored = {
        quantity: golden.ARRAYS[f"{name}/{quantity}"]
        for quantity in ("lrs", "losses", "keys", "change_norm", "after_keys", "after_first8")
    }
    rates = [[schedule(t) * factor for factor in (1, 10, 10)] for t in range(case["steps"])]
    np.testing.assert_allclose(rates, stored["lrs"], rtol=1e-5)
    for t in range(case["steps"]):
        images = denormalize(golden.images(case, t))  # the task normalises them
        batch = {"image": images, "labels": golden.labels(case, t)}
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    np.testing.assert_allclose(losses, stored["losses"], rtol=1e-4)
    before, after = to_torch(variables, model), to_torch(state.variables, model)
    norms = [np.linalg.norm(after[str(key)] - before[str(key)]) for key in stored["keys"]]
    expected = stored["change_norm"]
    error = np.abs(norms - expected) / (expected + 1e-3 * expected.max())
    assert error.max() < 5 * case["noise"]["change_norm"]
    # Running statistics, relative to the largest of a row.
    for key, row in zip(stored["after_keys"], stored["after_first8"], strict=True):
        found = after[str(key)].ravel()[:8]
        assert np.abs(found - row[: len(found)]).max() <= 1e-3 * np.abs(row).max() + 1e-5, key
