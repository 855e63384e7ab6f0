"""Steps on eight devices against the same steps, written by hand on one."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_net import small_task
from test_training import make_run, random_batch, tiny_task

from resnest_jax.training.collectives import collectives
from resnest_jax.training.mesh import batch_sharding, make_local_mesh, shard
from resnest_jax.training.optimizer import make_optimizer
from resnest_jax.training.state import abstract_state, create_state, initial_state
from resnest_jax.training.step import jit_train_step, make_train_step

FIELDS = {"name": "sgd", "momentum": 0.9, "nesterov": True, "weight_decay": 1e-4}
SGD = make_optimizer(lambda step: 0.05, **FIELDS)


def with_norm(task, **fields):
    return task.__class__(task.model.clone(**fields), task.num_classes, task.image_size)


def run_steps(task, count=2, **options):
    """Return the state after some steps on all devices."""
    run = make_run(task, SGD, **options)
    state, step = initial_state(run), jit_train_step(run)
    for seed in range(count):
        state, metrics = step(state, shard(random_batch(32, seed), run.mesh))
    return state, metrics


def assert_close(actual, expected, rtol=1e-5, atol=1e-6):
    def check(a, b):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=rtol, atol=atol)

    jax.tree.map(check, actual, expected)


def test_statistics_of_each_device_against_a_loop_over_devices():
    """Gradients and running statistics are the means of eight networks on four images each."""
    task = tiny_task(label_smoothing=0.1)
    state, metrics = run_steps(with_norm(task, norm_groups=8), count=1, total_steps=1)
    variables = jax.device_get(initial_state(make_run(task, SGD, total_steps=1)))

    def loss(params, batch_stats, *args):
        return with_norm(task).loss({"params": params, "batch_stats": batch_stats}, *args)

    gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))
    batch = random_batch(32, 0)
    parts = [
        gradient(
            variables.params,
            variables.batch_stats,
            {name: value[4 * i : 4 * i + 4] for name, value in batch.items()},
            jax.random.key(0),
            0.0,
        )
        for i in range(8)
    ]

    def mean(*trees):
        return jax.tree.map(lambda *leaves: np.mean(leaves, 0), *trees)

    np.testing.assert_allclose(metrics["loss"], np.mean([value for (value, _), _ in parts]), 1e-5)
    grads = mean(*[grads for _, grads in parts])
    updates, _ = SGD.update(grads, SGD.init(variables.params), variables.params)
    assert_close(state.params, optax.apply_updates(variables.params, updates), 1e-4)
    assert_close(state.batch_stats, mean(*[aux.batch_stats for (_, aux), _ in parts]))


def test_split_optimizer_equals_whole_one():
    """It is sharded: each device holds an eighth of each large array."""
    task = small_task()
    whole, _ = run_steps(task, ema_decay=0.9)
    split, _ = run_steps(task, ema_decay=0.9, shard_optimizer=True)
    assert_close(split, whole)
    arrays = jax.tree.leaves((split.opt_state, split.ema))
    divided = [leaf for leaf in arrays if any(size % 8 == 0 for size in leaf.shape)]
    # Momentum and average of all but the head's bias, and the averaged statistics.
    assert len(divided) == 2 * 10 + 6
    assert all(8 * leaf.addressable_shards[0].data.size == leaf.size for leaf in divided)
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(split.params))


@pytest.mark.parametrize("accumulate", [2, 4])
def test_accumulated_gradient_is_that_of_the_whole(accumulate):
    """With frozen batch norms images do not affect each other."""
    task = small_task(norm="frozen")
    whole, metrics = run_steps(task)
    parts, metrics_of_parts = run_steps(task, accumulate=accumulate)
    assert_close(parts.params, whole.params)
    assert_close(metrics_of_parts, metrics)


def test_moving_average_against_numpy():
    task = small_task()
    run = make_run(task, SGD, ema_decay=0.15)
    states = [jax.device_get(initial_state(run))]
    step = jax.jit(make_train_step(run))
    for seed in range(4):
        states.append(jax.device_get(step(states[-1], random_batch(16, seed))[0]))
    average = {"params": states[0].params, "batch_stats": states[0].batch_stats}
    assert_close(states[0].variables, average)
    # (1 + t) / (10 + t) is below the decay for t = 0 alone.
    for state, decay in zip(states[1:], (0.1, 0.15, 0.15, 0.15), strict=True):
        new = {"params": state.params, "batch_stats": state.batch_stats}
        average = jax.tree.map(lambda a, b, d=decay: d * a + (1 - d) * b, average, new)
        assert_close(state.variables, average)
        assert state.variables is state.ema
    without = create_state(states[0].variables, SGD)
    assert without.variables["params"] is without.params


def test_only_the_head_trains():
    optimizer = make_optimizer(lambda step: 0.05, **FIELDS, freeze="^(?!head/)")
    task = small_task(norm="frozen")
    run = make_run(task, optimizer, freeze="^(?!head/)")
    before = jax.device_get(initial_state(run))
    after, _ = jax.jit(make_train_step(run))(before, random_batch(16))
    for name, leaves in after.params.items():
        same = jax.tree.map(np.array_equal, leaves, before.params[name])
        assert all(jax.tree.leaves(same)) == (name != "head"), name
    assert_close(after.batch_stats, before.batch_stats, 0, 0)
    kept = sum(leaf.size for leaf in jax.tree.leaves(before.opt_state))
    assert kept < 2 * sum(leaf.size for leaf in jax.tree.leaves(before.params["head"]))


def test_frozen_backbone_has_no_backward_pass():
    """The compiled step has the arithmetic of a forward pass; a full step has three times it."""
    task, batch = with_norm(tiny_task(), norm="frozen"), random_batch(16)

    def flops(function, *args):
        return jax.jit(function).lower(*args).compile().cost_analysis()["flops"]

    def step_flops(freeze):
        optimizer = make_optimizer(lambda step: 0.05, **FIELDS, freeze=freeze)
        run = make_run(task, optimizer, freeze=freeze)
        return flops(make_train_step(run), jax.eval_shape(lambda: initial_state(run)), batch)

    variables = jax.eval_shape(task.init, jax.random.key(0))
    forward = flops(lambda v, b: task.loss(v, b, jax.random.key(0), 0.0)[0], variables, batch)
    assert step_flops("^(?!head/)") < 1.15 * forward
    assert step_flops("") > 2 * forward


@pytest.mark.parametrize("accumulate", [1, 2])
def test_devices_exchange_the_gradients_once(accumulate):
    """With statistics per device: about the bytes of the parameters, in one or two collectives."""
    task = small_task(norm_groups=8)
    run = make_run(task, SGD, accumulate=accumulate)
    state = abstract_state(run)
    batch = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=batch_sharding(run.mesh)),
        random_batch(32),
    )
    found = collectives(jit_train_step(run).lower(state, batch).compile().as_text())
    assert {operation.kind for operation in found} == {"all-reduce"}
    assert len(found) <= 2 * accumulate
    size = 4 * sum(leaf.size for leaf in jax.tree.leaves(state.params))
    statistics = 4 * sum(leaf.size for leaf in jax.tree.leaves(state.batch_stats))
    total = sum(operation.bytes for operation in found)
    assert size <= total <= accumulate * (1.05 * size + 2 * statistics)


def test_the_update_on_cpu_copies_no_parameters():
    """XLA copies what the update overwrites if the backward pass may still read it then."""
    run = make_run(small_task(), SGD, make_local_mesh(1))
    program = jit_train_step(run).lower(abstract_state(run), random_batch(32)).compile().as_text()
    assert "%state_params__conv2____kernel__" in program
    assert "copy(%state_params" not in program


def test_collectives_are_read_from_the_program():
    program = """
      %a = (f32[10,2]{1,0}, bf16[3]{0}) all-reduce(%x, %y), replica_groups={}
      %b = (f32[4]{0}, f32[8]{0}) all-gather-start(%z), dimensions={0}
      %d = f32[8]{0} all-gather-done(%b)
      %c = f32[] add(%p, %q)
    """
    assert collectives(program) == [("all-reduce", 86, False), ("all-gather", 32, False)]


def test_bf16_network_keeps_float32_state():
    state, _ = run_steps(small_task(dtype=jnp.bfloat16))
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {np.dtype("float32")}
