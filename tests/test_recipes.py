"""The recipes in configs/, and steps of the paper's against NumPy."""

import json

import golden
import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import segmentation_data

import resnest_jax
from resnest_jax import recipe
from resnest_jax.config import complete
from resnest_jax.errors import InputError
from resnest_jax.models.inputs import normalize
from resnest_jax.tasks.classification.mixing import Mixing
from resnest_jax.tasks.classification.task import Classification
from resnest_jax.training.checkpoints import latest_step, state_folder
from resnest_jax.training.state import create_state, initial_state
from resnest_jax.training.step import make_train_step, split_batch
from resnest_jax.training.variables import restore_variables

RECIPES = [
    *[("imagenet", name) for name in ("resnest14", "resnest26", "resnest50", "resnest101")],
    *[("imagenet", name) for name in ("resnest200", "resnest269")],
    *[("imagenet", f"resnest50_fast_{cell}") for cell in ("1s1x64d", "2s1x64d", "4s1x64d")],
    *[("imagenet", f"resnest50_fast_{cell}") for cell in ("1s2x40d", "2s2x40d", "4s2x40d")],
    ("imagenet", "resnest50_fast_1s4x24d"),
    ("imagenet_short", "16"),
    ("imagenet_short", "90"),
    ("imagenet_modern", "A2"),
    ("imagenet_modern", "A3"),
    ("finetune", "resnest50"),
    ("digits",),
]
GOLDEN = json.loads((golden.FOLDER / "configs.json").read_text())


@pytest.mark.parametrize("names", RECIPES, ids=":".join)
def test_recipe_builds(names):
    """On the digits, which need no download; all but the data is the recipe's."""
    config = helpers.load_config(*names)
    config.dataset, config.batch_size = "sklearn_digits", 64
    config.train_split = config.eval_split = "auto"
    run = recipe.build(config)
    assert run.options.total_steps == round(config.epochs * 1437 / 64)
    warmup = round(config.optimizer.warmup_epochs * 1437 / 64)
    peak = config.optimizer.base_learning_rate * 64 / 256
    np.testing.assert_allclose(run.schedule(warmup), peak, rtol=1e-6)


@pytest.mark.parametrize("name", GOLDEN)
def test_recipe_has_the_values_it_always_had(name):
    config = json.loads(json.dumps(helpers.load_config(*name.split(":")).to_dict()))
    compare(GOLDEN[name], config, name)


def compare(expected, actual, where):
    """Check that each key of the golden has its value; there may be others."""
    for key, value in expected.items():
        if isinstance(value, dict):
            compare(value, actual[key], f"{where}.{key}")
        else:
            assert actual[key] == value, f"{where}.{key}"


def test_lengths_in_steps_win_over_epochs():
    config = helpers.tiny_config(
        steps=100, eval_every_steps=7, optimizer__warmup_steps=11, evaluation__batch_size=360
    )
    run = recipe.build(config)
    assert (run.options.total_steps, run.options.eval_every) == (100, 7)
    np.testing.assert_allclose(run.schedule(11), 0.4 * 240 / 256, rtol=1e-6)
    assert len(next(run.batches.eval())["label"]) == 360
    with pytest.raises(InputError, match="epochs must be positive, or steps, which takes precede"):
        recipe.build(helpers.tiny_config(epochs=0.0))
    with pytest.raises(InputError, match="eval_every_epochs must be positive"):
        recipe.build(helpers.tiny_config(eval_every_epochs=float("nan")))
    run = recipe.build(helpers.tiny_config(evaluation__batch_size=12))
    assert len(next(run.batches.eval())["label"]) == 16  # the next multiple of the 8 devices
    run = recipe.build(helpers.tiny_config(batch_size=12), training=False)  # on other devices
    assert len(next(run.batches.eval())["label"]) == 16


def test_boundaries_count_in_the_unit_of_the_length():
    """1437 images, 240 per step: epochs 1 and 3 end near steps 6 and 18."""
    section = {"optimizer__schedule": "steps", "optimizer__warmup_epochs": 0.0}
    by_epochs = helpers.tiny_config(epochs=4.0, optimizer__boundaries=(1, 3), **section)
    by_steps = helpers.tiny_config(steps=24, optimizer__boundaries=(6, 18), **section)
    for config in (by_epochs, by_steps):
        rates = [float(recipe.build(config).schedule(step)) for step in (0, 5, 6, 17, 18, 23)]
        peak = 0.4 * 240 / 256
        expected = [peak, peak, 0.1 * peak, 0.1 * peak, 0.01 * peak, 0.01 * peak]
        np.testing.assert_allclose(rates, expected, rtol=1e-5)


def test_poly_ends_one_step_above_zero():
    config = helpers.tiny_config(
        steps=50, optimizer__schedule="poly", optimizer__warmup_epochs=0.0, optimizer__power=0.9
    )
    rate = float(recipe.build(config).schedule(49))
    np.testing.assert_allclose(rate, 0.4 * 240 / 256 * (1 / 50) ** 0.9, rtol=1e-5)


def test_frozen_stages_do_not_train():
    config = helpers.tiny_config(
        model__frozen_stages=2,
        optimizer__lr_mults=(("^head/", 10.0),),
        optimizer__warmup_epochs=0.0,
    )
    run = recipe.build(config)
    before = jax.device_get(initial_state(run))
    after, _ = jax.jit(make_train_step(run))(before, next(run.batches.train(0)))
    for name in before.params:
        same = jax.tree.map(np.array_equal, after.params[name], before.params[name])
        frozen = name in ("stem", "stage1_block1", "stage2_block1")
        assert frozen == all(jax.tree.leaves(same)), name


def test_a_run_starts_from_the_weights_of_another():
    """The weights are those of its last checkpoint; frozen stages stay as they were."""
    other = golden.FOLDER / "run_v0"
    stored = json.loads((other / "config.json").read_text())
    config = complete(stored | {"pretrained": {"weights": str(other), "train": "all"}})
    config.model.frozen_stages, config.optimizer.warmup_epochs = 2, 0.0
    run = recipe.build(config)
    before = jax.device_get(initial_state(run))
    loaded = restore_variables(state_folder(other, latest_step(other)))
    jax.tree.map(np.testing.assert_array_equal, dict(before.params), loaded["params"])
    jax.tree.map(np.testing.assert_array_equal, dict(before.batch_stats), loaded["batch_stats"])
    after, _ = jax.jit(make_train_step(run))(before, next(run.batches.train(0)))
    for name in before.params:
        same = jax.tree.map(np.array_equal, after.params[name], before.params[name])
        frozen = name == "stem" or name.startswith(("stage1", "stage2"))
        assert frozen == all(jax.tree.leaves(same)), name


def test_rates_fall_with_depth():
    """From the head down, one power per stage; a frozen stem does not matter."""
    config = helpers.tiny_config(
        optimizer__layer_decay=0.5, model__frozen_stages=1, optimizer__weight_decay=0.0
    )
    config.optimizer.update({"warmup_epochs": 0.0, "momentum": 0.0, "nesterov": False})
    optimizer = recipe.build(config).optimizer
    names = ("stem", *(f"stage{i}_block1" for i in range(1, 5)), "head")
    params = {name: {"kernel": np.ones(2, np.float32)} for name in names}
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    peak = 0.4 * 240 / 256
    factors = [-float(updates[name]["kernel"][0]) / peak for name in names]
    np.testing.assert_allclose(factors, [0, 0, 1 / 8, 1 / 4, 1 / 2, 1], rtol=1e-6)
    config.optimizer.lr_mults = (("^head/", 2.0),)
    with pytest.raises(InputError, match=r"layer_decay and optimizer.lr_mults are both given"):
        recipe.build(config)
    with pytest.raises(InputError, match=r"layer_decay must be in \(0, 1\]; got 0.0"):
        recipe.build(helpers.tiny_config(optimizer__layer_decay=0.0))


def test_paper_rates_and_batches():
    """The total learning rates as the paper prints them."""
    for name, rate, batch in (
        ("resnest50", 3.2, 8192),
        ("resnest101", 1.6, 4096),
        ("resnest200", 0.8, 2048),
        ("resnest269", 0.8, 2048),
        ("resnest26", 0.4, 1024),
    ):
        config = helpers.load_config("imagenet", name)
        assert config.batch_size == batch
        np.testing.assert_allclose(config.optimizer.base_learning_rate * batch / 256, rate)


@pytest.mark.parametrize(
    ("name", "argument"), [("imagenet", "resnest51"), ("imagenet_short", "200")]
)
def test_unknown_recipes_say_what_there_is(name, argument):
    with pytest.raises(ValueError, match=argument):
        helpers.load_config(name, argument)


def test_steps_of_the_paper_against_numpy():
    """Three steps from golden weights: mixup, smoothing, warm-up, coupled decay, Nesterov.

    All but the network is written in NumPy. The gradient of the logits has a closed form; the model
    that the goldens compare with the authors' propagates it back.
    """
    config = helpers.load_config("imagenet", "resnest14")
    config.dataset, config.train_split, config.batch_size = "sklearn_digits", "auto", 8
    config.image_size = config.eval_image_size = 32
    config.model.dtype, config.model.drop_block = "float32", 0.0
    config.parallel.batch_norm = "global"
    run = recipe.build(config)
    model = run.task.model
    variables = resnest_jax.from_torch(golden.state_dict(model), model)
    step = jax.jit(make_train_step(run))
    state = create_state(variables, run.optimizer)

    @jax.jit
    def pull_back(params, batch_stats, images, logit_gradient):
        def logits_of(params):
            variables = {"params": params, "batch_stats": batch_stats}
            return model.apply(variables, images, train=True, mutable=["batch_stats"])

        logits, vjp, updates = jax.vjp(logits_of, params, has_aux=True)
        return logits, vjp(logit_gradient)[0], updates["batch_stats"]

    params, stats = variables["params"], variables["batch_stats"]
    momentum = jax.tree.map(np.zeros_like, params)
    rng = np.random.default_rng(0)
    for index in range(3):
        batch = {
            "image": rng.integers(0, 256, (8, 32, 32, 3), np.uint8),
            "label": rng.integers(0, 10, 8).astype(np.int32),
        }
        state, metrics = step(state, batch)

        key = jax.random.fold_in(jax.random.key(0), index)
        mixup_key = jax.random.split(jax.random.split(key)[0], 4)[1]
        weight = float(jax.random.beta(mixup_key, 0.2, 0.2, (1,))[0])
        images = np.asarray(normalize(batch["image"]))
        targets = np.full((8, 10), 0.01)
        targets[np.arange(8), batch["label"]] += 0.9
        images, targets = (weight * x + (1 - weight) * x[::-1] for x in (images, targets))
        logits, _, _ = pull_back(params, stats, images, jnp.zeros((8, 10)))
        exps = np.exp(np.asarray(logits, np.float64))
        softmax = exps / exps.sum(-1, keepdims=True)
        loss = -(targets * np.log(softmax)).sum(-1).mean()
        np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
        gradient = np.float32((softmax - targets) / 8)
        _, grads, stats = pull_back(params, stats, images, gradient)
        warmup_steps = round(5 * 1437 / 8)
        rate = 0.1 * 8 / 256 * index / warmup_steps

        def update(path, p, g, m, rate=rate):
            g = g + (1e-4 * p if path[-1].key == "kernel" else 0)
            m = 0.9 * m + g
            return p - rate * (g + 0.9 * m), m

        pairs = jax.tree_util.tree_map_with_path(update, params, grads, momentum)
        params, momentum = (
            jax.tree.map(lambda pair, i=i: pair[i], pairs, is_leaf=lambda x: isinstance(x, tuple))
            for i in range(2)
        )
        for actual, expected in ((state.params, params), (state.batch_stats, stats)):
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
                actual,
                expected,
            )


class Fixed:
    """A model with given logits."""

    logits = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)

    def apply(self, *_, **__):
        return self.logits, {"batch_stats": {}}


def test_sigmoid_loss_takes_every_mixed_class_to_be_there():
    labels = np.array([0, 1, 2, 1])
    batch = {"image": np.zeros((4, 8, 8, 3), np.uint8), "label": labels}
    task = Classification(Fixed(), 3, 8, loss_name="sigmoid", mixing=Mixing(mixup=50.0))
    _, targets, _ = task.inputs(jax.random.key(0), batch)
    share = np.sort(np.asarray(targets)[0])  # near one half, so the threshold does not matter
    np.testing.assert_allclose(share[-2:], 0.5, atol=0.2)
    loss, _ = task.loss({}, batch, jax.random.key(7), 0.0)
    there = np.eye(3)[labels] + np.eye(3)[labels[::-1]] > 0  # an image and its partner
    log_p, log_q = (-np.log1p(np.exp(sign * Fixed.logits)) for sign in (-1, 1))
    np.testing.assert_allclose(loss, -np.where(there, log_p, log_q).mean(), rtol=1e-5)


def test_accumulated_parts_take_from_every_device():
    batch = {"label": np.arange(12)}
    parts = split_batch(batch, 2, 3)["label"]  # devices hold 0..3, 4..7, 8..11
    np.testing.assert_array_equal(parts, [[0, 1, 4, 5, 8, 9], [2, 3, 6, 7, 10, 11]])


@pytest.mark.parametrize(
    ("name", "rate"), [("ade20k", 0.004), ("cityscapes", 0.004), ("pascal_context", 0.001)]
)
def test_recipes_of_segmentation(name, rate, tmp_path):
    """On a small folder; all but the data and the weights is the recipe's, and published."""
    segmentation_data.write_folder(tmp_path)
    config = helpers.load_config(name, "resnest101")
    assert config.dataset.partition(":")[0] == name
    epochs = {"ade20k": 180, "cityscapes": 240, "pascal_context": 80}
    config.dataset = f"masks:{tmp_path}"
    run = recipe.build(config)
    assert run.options.total_steps == epochs[name]
    np.testing.assert_allclose(
        [run.schedule(0), run.schedule(40)],
        [rate, rate * (1 - 40 / epochs[name]) ** 0.9],
        rtol=1e-5,
    )
    assert run.task.auxiliary_weight == 0.2
    assert len(run.task.model.backbone.stage_sizes) == 4
    assert run.task.model.auxiliary
    (spec,) = run.batches.train_specs()
    assert spec["image"].shape == (16, 480, 480, 3)
    assert (config.optimizer.decay, config.optimizer.lr_mults[0][1]) == (".*", 10.0)
