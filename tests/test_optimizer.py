"""Schedules and optimisers, against closed forms and loops in NumPy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import resnest_jax
from resnest_jax.errors import InputError
from resnest_jax.training.optimizer import make_optimizer, make_schedule, trainable

SGD = {"name": "sgd", "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}
LAMB = {"name": "lamb", "momentum": 0.9, "nesterov": False, "weight_decay": 0.02}
ADAMW = LAMB | {"name": "adamw"}
HEAD = "^(?!head/)"


def schedule_of(kind="cosine", **fields):
    defaults = {"base_learning_rate": 0.1, "batch_size": 512, "total_steps": 200}
    return make_schedule(kind=kind, **defaults | fields)


def compare(schedule, expected, steps, rtol=1e-6):
    """Compare on the host and under jit."""
    for evaluate in (schedule, jax.jit(schedule)):
        found = [float(evaluate(step)) for step in steps]
        np.testing.assert_allclose(found, [expected(step) for step in steps], rtol, atol=1e-12)


def test_cosine():
    """Closed form: linear from 0, cosine to 0, the peak scaled by the batch size."""

    def expected(step):
        if step < 50:
            return 0.2 * step / 50
        return 0.2 * (1 + math.cos(math.pi * (step - 50) / 150)) / 2

    schedule = schedule_of(warmup_steps=50)
    for step in (0, 1, 25, 49, 50, 51, 120, 199, 200):
        np.testing.assert_allclose(schedule(step), expected(step), rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(schedule_of(warmup_steps=50, warmup_start=0.1)(0), 0.02, rtol=1e-6)


def test_cosine_has_not_changed():
    """Bit for bit, because old runs resume with it."""
    before = optax.warmup_cosine_decay_schedule(0.0, 0.1 * 96 / 256, 17, 333)
    after = schedule_of(batch_size=96, warmup_steps=17, total_steps=333)
    steps = jnp.arange(340)
    np.testing.assert_array_equal(jax.vmap(after)(steps), jax.vmap(before)(steps))


@pytest.mark.parametrize(("warmup", "start"), [(0, 0.0), (40, 0.0), (40, 0.25)])
def test_poly(warmup, start):
    def expected(step):
        if step < warmup:
            return 0.2 * (start + (1 - start) * step / warmup)
        return 0.2 * (1 - (step - warmup) / (200 - warmup)) ** 0.9

    schedule = schedule_of("poly", warmup_steps=warmup, warmup_start=start)
    compare(schedule, expected, (0, 1, 39, 40, 41, 120, 198, 199, 200))
    assert schedule(201) == 0


def test_poly_of_the_authors():
    """DeepLabV3 on ADE20K: values of the authors' code, down to the last of 227340 steps."""
    rates = {
        0: 0.004,
        1: 0.00399998416468377,
        1263: 0.003979994433094451,
        113650: 0.0021438863594460873,
        227300: 1.6707278551559122e-06,
        227338: 1.1271422190487173e-07,
        227339: 6.040205594403424e-08,
    }
    schedule = schedule_of("poly", base_learning_rate=0.064, batch_size=16, total_steps=180 * 1263)
    compare(schedule, rates.get, rates)


def test_steps_of_the_authors():
    """Mask R-CNN on COCO (detectron2's WarmupMultiStepLR): values of the authors' code."""
    rates = {
        0: 2e-05,
        1: 3.998e-05,
        2: 5.996e-05,
        100: 0.002018,
        500: 0.01001,
        999: 0.01998002,
        1000: 0.02,
        59999: 0.02,
        60000: 0.002,
        79999: 0.002,
        80000: 0.0002,
        89999: 0.0002,
    }
    schedule = schedule_of(
        "steps",
        base_learning_rate=0.32,
        batch_size=16,
        total_steps=90_000,
        boundaries=(60_000, 80_000),
        warmup_steps=1000,
        warmup_start=0.001,
    )
    compare(schedule, rates.get, rates)


def test_warm_up_multiplies_the_steps():
    """A boundary may lie in the warm-up."""

    def expected(step):
        return 0.2 * min(step / 40, 1) * 0.5 ** sum(step >= boundary for boundary in (20, 100))

    schedule = schedule_of("steps", boundaries=(20, 100), factor=0.5, warmup_steps=40)
    compare(schedule, expected, (0, 1, 19, 20, 21, 39, 40, 99, 100, 199, 500))


@pytest.mark.parametrize(("kind", "boundaries"), [("cosine", ()), ("poly", ()), ("steps", (1,))])
def test_shortest_runs(kind, boundaries):
    """One step without warm-up, two with warm-up or a boundary."""
    steps = 2 if boundaries else 1
    schedule = schedule_of(kind, total_steps=steps, boundaries=boundaries)
    np.testing.assert_allclose(schedule(0), 0.2, rtol=1e-6)
    schedule = schedule_of(kind, total_steps=2, warmup_steps=1, boundaries=boundaries)
    assert schedule(0) == 0
    assert np.asarray(schedule(1)) > 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "linear"}, r"optimizer.schedule must be one of \('cosine', .*; got 'linear'"),
        ({"base_learning_rate": 0.0}, "optimizer.base_learning_rate must be positive.*got 0.0"),
        ({"base_learning_rate": math.nan}, "optimizer.base_learning_rate .*got nan"),
        ({"base_learning_rate": math.inf}, "optimizer.base_learning_rate .*got inf"),
        ({"warmup_steps": -1}, r"optimizer.warmup_steps.* in \[0, 200\).*got -1"),
        ({"warmup_steps": 200}, r"optimizer.warmup_steps.* in \[0, 200\).*got 200"),
        ({"total_steps": 1, "warmup_steps": 1}, r"optimizer.warmup_steps.* in \[0, 1\).*got 1"),
        ({"warmup_start": 1.5}, r"optimizer.warmup_start must be in \[0, 1\]; got 1.5"),
        ({"warmup_start": math.nan}, "optimizer.warmup_start .*got nan"),
        ({"factor": 0.0}, "optimizer.factor must be positive"),
        ({"power": math.inf}, "optimizer.power must be positive"),
        ({"boundaries": (50,)}, r"optimizer.boundaries .*got \(50,\) with 'cosine'"),
        ({"kind": "steps"}, r"optimizer.boundaries .*got \(\) with 'steps'"),
        ({"kind": "steps", "boundaries": (0, 50)}, r"optimizer.boundaries must .*got \(0, 50\)"),
        ({"kind": "steps", "boundaries": (50, 50)}, r"boundaries must increase.*got \(50, 50\)"),
        ({"kind": "steps", "boundaries": (50, 200)}, r"before 200.*got \(50, 200\)"),
    ],
)
def test_bad_schedules_are_named(fields, message):
    with pytest.raises(InputError, match=message):
        schedule_of(**fields)


def random_tree(shapes, seed):
    rng = np.random.default_rng(seed)
    draw = lambda shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    return jax.tree.map(draw, shapes, is_leaf=lambda shape: isinstance(shape, tuple))


SHAPES = {
    "conv": {"kernel": (3, 3, 2, 4), "bias": (4,)},
    "bn": {"scale": (4,), "bias": (4,)},
    "head": {"kernel": (4, 3), "bias": (3,)},
}


def optimize(optimizer, steps=3, shapes=SHAPES):
    """Return the parameters after some steps, and the last state."""
    params = random_tree(shapes, 0)
    state = optimizer.init(params)
    for step in range(steps):
        updates, state = optimizer.update(random_tree(shapes, step + 1), state, params)
        params = optax.apply_updates(params, updates)
    return jax.device_get((params, state))


def numpy_sgd(*, nesterov, decays, factor, steps=3):
    """Run SGD of groups as PyTorch defines it, with the numbers of ``SGD``."""
    params = jax.tree.map(np.float64, random_tree(SHAPES, 0))
    buffers = jax.tree.map(np.zeros_like, params)
    for step in range(steps):
        grads = random_tree(SHAPES, step + 1)
        for module, leaves in params.items():
            for name in leaves:
                gradient = grads[module][name] + 0.01 * decays(module, name) * leaves[name]
                buffer = buffers[module][name] = 0.9 * buffers[module][name] + gradient
                change = gradient + 0.9 * buffer if nesterov else buffer
                leaves[name] = leaves[name] - 0.1 / (step + 1) * factor(module, name) * change
    return params


def assert_close(actual, expected, rtol=1e-5):
    compare = lambda a, b: np.testing.assert_allclose(a, b, rtol, atol=1e-6)  # noqa: E731
    jax.tree.map(compare, actual, expected)


def falling(step):
    return 0.1 / (step + 1)


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_against_numpy(nesterov):
    """Three steps of momentum with decay in the gradient, on kernels only."""
    actual, _ = optimize(make_optimizer(falling, **SGD | {"nesterov": nesterov}))
    is_kernel = lambda module, name: name == "kernel"  # noqa: E731
    expected = numpy_sgd(nesterov=nesterov, decays=is_kernel, factor=lambda *_: 1)
    assert_close(actual, expected)


@pytest.mark.parametrize("nesterov", [False, True])
def test_rates_of_groups_against_numpy(nesterov):
    """The first regular expression that matches counts; only the norm does not decay."""
    optimizer = make_optimizer(
        falling,
        **SGD | {"nesterov": nesterov},
        decay="^(?!bn/)",
        lr_mults=(("^head/bias$", 0.5), ("^head/", 10), ("^conv/kernel$", 2.0)),
    )
    factors = {("head", "bias"): 0.5, ("head", "kernel"): 10, ("conv", "kernel"): 2}
    expected = numpy_sgd(
        nesterov=nesterov,
        decays=lambda module, name: module != "bn",
        factor=lambda *names: factors.get(names, 1),
    )
    assert_close(optimize(optimizer)[0], expected)


def test_sgd_of_the_authors():
    """Five steps of their segmentation: all parameters decay, the head has ten times the rate."""
    rng = np.random.RandomState(281)  # parameters, then each step's gradients, in this order
    shapes = {"first": (3, 4), "head/second": (5,), "head/third": (2, 3)}
    params, *grads = (
        {name: np.float32(rng.randn(*shape)) for name, shape in shapes.items()} for _ in range(6)
    )
    optimizer = make_optimizer(
        schedule_of("poly", base_learning_rate=0.064, batch_size=16, total_steps=6),
        name="sgd",
        momentum=0.9,
        nesterov=False,
        weight_decay=1e-4,
        decay=".*",
        lr_mults=(("^head/", 10.0),),
    )
    state = optimizer.init(params)
    for gradient in grads:
        updates, state = optimizer.update(gradient, state, params)
        params = jax.tree.map(np.add, params, updates)
    expected = {
        "first": [-0.8396981816795904, -0.08006418721499071, -0.39822236187803645],
        "head/second": [0.4657580797458462, -0.13088581419372797, -2.0368064796527374],
        "head/third": [-0.44617114307354755, -1.025615061268288, -0.037860593695412635],
    }
    for name, values in expected.items():
        np.testing.assert_allclose(params[name].ravel()[:3], values, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("factor", [1, 3])
def test_lamb_against_numpy(factor):
    """Clipped, bias-corrected, trust ratio only where decay applies; the factor comes last."""
    mults = () if factor == 1 else (("^head/", factor),)
    actual, _ = optimize(make_optimizer(lambda step: 0.1, **LAMB, lr_mults=mults), steps=2)
    expected = jax.tree.map(np.float64, random_tree(SHAPES, 0))
    first, second = (jax.tree.map(np.zeros_like, expected) for _ in range(2))
    for count in (1, 2):
        grads = jax.tree.map(np.float64, random_tree(SHAPES, count))
        norm = np.sqrt(sum((g**2).sum() for g in jax.tree.leaves(grads)))
        for module, leaves in expected.items():
            for name, p in leaves.items():
                g = grads[module][name] / max(norm, 1)
                m = first[module][name] = 0.9 * first[module][name] + 0.1 * g
                v = second[module][name] = 0.999 * second[module][name] + 0.001 * g**2
                u = m / (1 - 0.9**count) / (np.sqrt(v / (1 - 0.999**count)) + 1e-6)
                if name == "kernel":
                    u = u + 0.02 * p
                    u = u * np.linalg.norm(p) / np.linalg.norm(u)
                leaves[name] = p - 0.1 * (factor if module == "head" else 1) * u
    assert_close(actual, expected, rtol=1e-4)


def test_adamw_against_numpy():
    """Bias-corrected; the decay of kernels is times the rate, and not in the moments."""
    actual, _ = optimize(make_optimizer(falling, **ADAMW), steps=3)
    expected = jax.tree.map(np.float64, random_tree(SHAPES, 0))
    first, second = (jax.tree.map(np.zeros_like, expected) for _ in range(2))
    for count in (1, 2, 3):
        grads = jax.tree.map(np.float64, random_tree(SHAPES, count))
        for module, leaves in expected.items():
            for name, p in leaves.items():
                m = first[module][name] = 0.9 * first[module][name] + 0.1 * grads[module][name]
                v = 0.999 * second[module][name] + 0.001 * grads[module][name] ** 2
                second[module][name] = v
                u = m / (1 - 0.9**count) / (np.sqrt(v / (1 - 0.999**count)) + 1e-8)
                decay = 0.02 * p if name == "kernel" else 0
                leaves[name] = p - 0.1 / count * (u + decay)
    assert_close(actual, expected, rtol=1e-4)


@pytest.mark.parametrize("fields", [SGD, LAMB, ADAMW], ids=["sgd", "lamb", "adamw"])
@pytest.mark.parametrize(("limit", "freeze"), [(0.7, ""), (0.7, HEAD), (1e3, ""), (math.inf, "")])
def test_clipping_scales_the_whole_gradient(fields, limit, freeze):
    """As the optimiser without a limit, with a gradient that NumPy scales to the norm."""
    clipped = make_optimizer(falling, **fields, freeze=freeze, clip_norm=limit)
    free = make_optimizer(falling, **fields, freeze=freeze, clip_norm=math.inf)
    params, grads = random_tree(SHAPES, 0), random_tree(SHAPES, 1)
    trained = grads["head"] if freeze else grads
    norm = math.sqrt(sum(np.sum(np.float64(g) ** 2) for g in jax.tree.leaves(trained)))
    scaled = jax.tree.map(lambda g: np.float32(g * min(1, limit / norm)), grads)
    found, _ = clipped.update(grads, clipped.init(params), params)
    expected, _ = free.update(scaled, free.init(params), params)
    assert_close(found, expected)


def old_optimizer(name, head=False):
    """Return the optimiser of runs from before ``freeze``, ``decay`` and ``lr_mults``."""

    def kernels(params):
        return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)

    if name == "sgd":
        decay = optax.add_decayed_weights(0.01, mask=kernels)
        optimizer = optax.chain(decay, optax.sgd(falling, momentum=0.9, nesterov=True))
    else:
        optimizer = optax.chain(
            optax.clip_by_global_norm(1.0),
            optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-6),
            optax.add_decayed_weights(0.02, mask=kernels),
            optax.masked(optax.scale_by_trust_ratio(), kernels),
            optax.scale_by_learning_rate(falling),
        )
    if not head:
        return optimizer
    return optax.multi_transform(
        {"train": optimizer, "keep": optax.set_to_zero()},
        lambda params: {key: "train" if key == "head" else "keep" for key in params},
    )


@pytest.mark.parametrize("freeze", ["", HEAD])
@pytest.mark.parametrize("fields", [SGD, LAMB], ids=["sgd", "lamb"])
def test_old_states_restore(fields, freeze):
    """The state of a real network has the same tree, the same paths and the same numbers."""
    old = old_optimizer(fields["name"], head=bool(freeze))
    new = make_optimizer(falling, **fields, freeze=freeze)
    model = resnest_jax.create_model(
        "resnest14_fast_2s2x64d", num_classes=10, planes=(8, 8, 16, 16), stem_width=4
    )
    images = jnp.zeros((1, 32, 32, 3))
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), images))["params"]
    before, after = jax.eval_shape(old.init, params), jax.eval_shape(new.init, params)
    assert jax.tree.structure(after) == jax.tree.structure(before)
    assert jax.tree.leaves_with_path(after) == jax.tree.leaves_with_path(before)
    jax.tree.map(np.testing.assert_array_equal, optimize(new), optimize(old))


@pytest.mark.parametrize("fields", [SGD, LAMB, ADAMW], ids=["sgd", "lamb", "adamw"])
def test_frozen_parameters_stay(fields):
    """Neither gradient nor decay changes them, and the optimiser keeps no state for them."""
    freeze = "^conv/|^bn/scale$"
    optimizer = make_optimizer(falling, **fields, freeze=freeze, lr_mults=(("^head/", 2.0),))
    before, (after, state) = random_tree(SHAPES, 0), optimize(optimizer)
    moves = jax.tree.map(lambda a, b: not np.array_equal(a, b), before, after)
    expected = {
        "conv": {"kernel": False, "bias": False},
        "bn": {"scale": False, "bias": True},
        "head": {"kernel": True, "bias": True},
    }
    assert moves == expected == trainable(before, freeze)
    assert trainable(before, "") == jax.tree.map(lambda _: True, before)
    moments = 1 if fields["name"] == "sgd" else 2
    arrays = [leaf.shape for leaf in jax.tree.leaves(state) if leaf.shape]
    assert sorted(arrays) == sorted(moments * [(4,), (4, 3), (3,)])


def test_every_path_is_a_slash_between_names():
    tree = {"stage1_block1": {"conv1": {"kernel": 0, "bias": 0}}, "head": {"bias": 0}}
    found = trainable(tree, "^stage1_block1/conv1/kernel$|^head/bias$")
    trained = {"stage1_block1": {"conv1": {"kernel": False, "bias": True}}, "head": {"bias": False}}
    assert found == trained


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "adam"}, "optimizer.name must be one of .*got 'adam'"),
        ({"momentum": math.nan}, r"optimizer.momentum must be in \[0, 1\); got nan"),
        ({"weight_decay": math.nan}, "optimizer.weight_decay must .*got nan"),
        ({"weight_decay": math.inf}, "optimizer.weight_decay must .*got inf"),
        ({"clip_norm": -1.0}, "optimizer.clip_norm must not be negative; got -1.0"),
        ({"clip_norm": math.nan}, "optimizer.clip_norm must not be negative; got nan"),
        ({"name": "lamb"}, "optimizer.nesterov must be False .*'lamb'"),
        ({"name": "adamw"}, "optimizer.nesterov must be False .*'adamw'"),
        ({"decay": "("}, r"optimizer.decay must be a regular expression; got '\('"),
        ({"decay": ""}, "optimizer.decay must be a regular expression"),
        ({"freeze": "*"}, r"optimizer.freeze must be a regular expression; got '\*'"),
        ({"lr_mults": (("[", 2.0),)}, r"optimizer.lr_mults must be a regular .*got '\['"),
        ({"lr_mults": (("^head/", 0.0),)}, r"optimizer.lr_mults .*got \('\^head/', 0.0\)"),
        ({"lr_mults": (("^head/", math.nan),)}, "optimizer.lr_mults .*, nan"),
        ({"lr_mults": (("^head/", math.inf),)}, "optimizer.lr_mults .*, inf"),
        ({"lr_mults": (("^head/", "2"),)}, "optimizer.lr_mults .*, '2'"),
        ({"lr_mults": ("^head/", 2.0)}, r"optimizer.lr_mults must be pairs.*got '\^head/'"),
    ],
)
def test_bad_optimizers_are_named(fields, message):
    with pytest.raises(InputError, match=message):
        make_optimizer(falling, **SGD | fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"decay": "weight$"}, "optimizer.decay 'weight.*' matches no parameter; .*conv/kernel"),
        ({"freeze": "^stem"}, r"optimizer.freeze '\^stem' matches no parameter; there are bn/"),
        ({"freeze": "."}, r"optimizer.freeze '.' matches every parameter.*head/kernel"),
        ({"lr_mults": (("^tail/", 2.0),)}, r"optimizer.lr_mults '\^tail/' matches no parameter;"),
        (
            {"lr_mults": (("^head/", 2.0), ("^head/bias$", 3.0))},
            r"'\^head/bias\$' matches no parameter left by earlier patterns",
        ),
    ],
)
def test_regexes_without_a_match_are_named(fields, message):
    """From shapes, before anything is computed."""
    optimizer = make_optimizer(falling, **SGD | fields)
    with pytest.raises(InputError, match=message):
        jax.eval_shape(optimizer.init, random_tree(SHAPES, 0))
