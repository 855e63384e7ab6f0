"""The step, its parts and the loop."""

import dataclasses
import json
import math
import shutil
from types import SimpleNamespace
from typing import cast

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import with_whole_run
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from small_net import SmallNet, small_task

import resnest_jax
from resnest_jax import recipe, runs
from resnest_jax.config import complete
from resnest_jax.errors import DivergenceError, InputError
from resnest_jax.tasks.classification import evaluate
from resnest_jax.tasks.classification.mixing import Mixing
from resnest_jax.tasks.classification.task import Classification
from resnest_jax.training.checkpoints import stored_config
from resnest_jax.training.loop import fit
from resnest_jax.training.metric_writer import MetricsWriter, read_metrics
from resnest_jax.training.optimizer import make_optimizer
from resnest_jax.training.run import Run, TrainOptions
from resnest_jax.training.state import abstract_state, create_state
from resnest_jax.training.step import make_train_step
from resnest_jax.training.task import Batches
from resnest_jax.workdir import check_workdir, claim_workdir, load_config


def tiny_task(**fields):
    model = resnest_jax.create_model(
        "resnest14_fast_2s2x64d", num_classes=10, planes=(8, 8, 16, 16), stem_width=4
    )
    return Classification(model, 10, 32, **fields)


OPTIONS = TrainOptions(
    seed=0, total_steps=10, steps_per_epoch=5, batch_size=32, log_every=1, eval_every=5
)


def make_run(task, optimizer, mesh=None, **options):
    """A run without data."""
    options = OPTIONS._replace(**options)
    fields = {"mesh": mesh} if mesh else {}
    return Run(task, cast(Batches, None), optimizer, lambda step: 0.0, options, **fields)


def random_batch(size, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (size, 32, 32, 3), np.uint8)
    return {"image": images, "label": rng.integers(0, 10, size).astype(np.int32)}


def test_loss_against_numpy():
    """The loss is the cross-entropy of smoothed labels, off-value eps / K, on normalised images."""
    task = tiny_task(label_smoothing=0.1)
    batch = random_batch(8)
    variables = jax.jit(task.init)(jax.random.key(0))
    loss, _ = jax.jit(task.loss)(variables, batch, jax.random.key(0), 0.0)
    mean = 255 * np.array([0.485, 0.456, 0.406])
    std = 255 * np.array([0.229, 0.224, 0.225])
    images = ((batch["image"] - mean) / std).astype(np.float32)
    logits, _ = jax.jit(lambda v, x: task.model.apply(v, x, train=True, mutable=["batch_stats"]))(
        variables, images
    )
    logits = np.asarray(logits, np.float64)
    log_probabilities = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    targets = np.full((8, 10), 0.01)
    targets[np.arange(8), batch["label"]] += 0.9
    np.testing.assert_allclose(loss, -(targets * log_probabilities).sum(-1).mean(), rtol=1e-5)


def test_evaluation_counts_valid_images_once():
    task = tiny_task()
    variables = jax.jit(task.init)(jax.random.key(0))
    batch = random_batch(8) | {"valid": np.arange(8) < 5}
    sums = jax.jit(task.eval_step)(variables, batch).sums
    assert sums["count"] == 5
    logits = []
    task_model = lambda images: task.model.apply(variables, images)  # noqa: E731
    normalised = (batch["image"] - np.array([123.675, 116.28, 103.53])) / np.array(
        [58.395, 57.12, 57.375]
    )
    logits = np.asarray(jax.jit(task_model)(normalised.astype(np.float32)))[:5]
    order = np.argsort(-logits, -1)
    hits = order == batch["label"][:5, None]
    assert sums["top1"] == hits[:, :1].sum()
    assert sums["top5"] == hits[:, :5].sum()


def test_eight_devices_equal_one():
    """Losses, gradients, statistics and parameters, to float32 rounding."""
    task = tiny_task(label_smoothing=0.1, mixing=Mixing(mixup=0.2))
    optimizer = make_optimizer(
        lambda step: 0.05, name="sgd", momentum=0.9, nesterov=True, weight_decay=1e-4
    )
    results = []
    for count in (1, 8):
        devices = jax.devices()[:count]
        mesh = jax.make_mesh((count,), ("data",), (AxisType.Auto,), devices=devices)
        state = create_state(jax.jit(task.init)(jax.random.key(0)), optimizer)
        state = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
        step = jax.jit(make_train_step(make_run(task, optimizer, mesh, seed=3, total_steps=2)))
        for seed in range(2):
            sharding = NamedSharding(mesh, PartitionSpec("data"))
            batch = jax.device_put(random_batch(32, seed), sharding)
            state, metrics = step(state, batch)
        results.append(jax.device_get((metrics, state.params, state.batch_stats)))
    for one, eight in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(eight, one, rtol=1e-5, atol=1e-6)


def test_accumulated_gradients_are_clipped_as_one():
    """The update has the norm of the limit; the logged norm is that before clipping."""
    task, batch = small_task(norm="frozen"), random_batch(32)
    variables = jax.jit(task.init)(jax.random.key(0))
    norms = []
    for parts in (1, 4):
        optimizer = make_optimizer(
            lambda step: 1.0, name="sgd", momentum=0, nesterov=False, weight_decay=0, clip_norm=0.01
        )
        state = create_state(variables, optimizer)
        run = make_run(task, optimizer, accumulate=parts)
        after, metrics = jax.jit(make_train_step(run))(state, batch)
        update = jax.tree.map(jnp.subtract, after.params, state.params)
        np.testing.assert_allclose(optax.tree.norm(update), 0.01, rtol=1e-3)
        norms.append(float(metrics["grad_norm"]))
    assert norms[0] > 0.02
    np.testing.assert_allclose(norms[1], norms[0], rtol=1e-4)


def test_the_logged_norm_is_that_of_all_gradients():
    task = small_task()
    optimizer = make_optimizer(
        lambda step: 1.0, name="sgd", momentum=0, nesterov=False, weight_decay=0
    )
    state = create_state(jax.jit(task.init)(jax.random.key(0)), optimizer)
    step = jax.jit(make_train_step(make_run(task, optimizer)))
    after, metrics = step(state, random_batch(32))
    update = jax.tree.map(jnp.subtract, after.params, state.params)
    np.testing.assert_allclose(metrics["grad_norm"], optax.tree.norm(update), rtol=1e-4)


def state_of(workdir, config):
    """Return the stored state as arrays."""
    run = recipe.build(config)
    with runs.open_checkpoints(run, config, workdir) as checkpoints:
        return jax.device_get(checkpoints.restore(abstract_state(run))[0])


@with_whole_run
def test_a_run_leaves_what_it_should(whole_run):
    workdir, summary = whole_run
    assert summary == json.loads((workdir / "summary.json").read_text())
    assert summary["model"] == "resnest14_fast_2s1x64d"
    assert summary["step"] == 12
    assert summary["epoch"] == pytest.approx(2, abs=0.01)
    assert 0 <= summary["eval_top1"] <= summary["eval_top5"] <= 1
    assert json.loads((workdir / "config.json").read_text())["batch_size"] == 240
    assert complete(stored_config(workdir)) == load_config(workdir)
    assert (workdir / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert list(workdir.glob("events.out.tfevents*"))
    assert "stage4_block1/conv3/kernel" in (workdir / "parameters.txt").read_text()
    lines = read_metrics(workdir)
    assert [line["step"] for line in lines if "loss" in line] == [2, 3, 4, 6, 8, 9, 10, 12]
    accuracy = {line["step"]: line["eval_top1"] for line in lines if "eval_top1" in line}
    assert list(accuracy) == [3, 6, 9, 12]
    kept = {int(path.name) for path in (workdir / "checkpoints").iterdir()}
    assert {9, 12} <= kept
    assert len(kept) <= 3
    assert max(accuracy[step] for step in kept) == max(accuracy.values())


@with_whole_run
def test_evaluate_gives_the_same_number(whole_run):
    workdir, summary = whole_run
    again = evaluate.run(None, str(workdir))
    assert {key: summary[key] for key in again} == again
    best = evaluate.run(None, str(workdir), "best")
    assert best["step"] == summary["best_step"]
    assert (
        best["eval_top1"]
        == summary["best_eval_top1"]
        == max(line.get("eval_top1", 0) for line in read_metrics(workdir))
    )
    with pytest.raises(InputError, match="no checkpoint '5'"):
        evaluate.run(None, str(workdir), "5")


@with_whole_run
def test_resumed_run_is_the_same(whole_run, tmp_path):
    """Stopped at an evaluation and resumed, it equals the uninterrupted run bit for bit."""
    workdir, summary = whole_run

    class Stop(Exception):
        pass

    def stop_at_6(self, step, metrics, original=MetricsWriter.write):
        original(self, step, metrics)
        if step == 8:
            raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MetricsWriter, "write", stop_at_6)
        with pytest.raises(Stop):
            runs.train(helpers.tiny_config(), tmp_path)
    resumed = runs.train(helpers.tiny_config(), tmp_path)
    ignore = {"seconds": 0}
    assert resumed | ignore == summary | ignore
    names = ("metrics.jsonl", "config.json")
    for name in names:
        assert (tmp_path / name).read_bytes() == (workdir / name).read_bytes()
    config = helpers.tiny_config()
    jax.tree.map(np.testing.assert_array_equal, *(state_of(d, config) for d in (workdir, tmp_path)))


@with_whole_run
@pytest.mark.parametrize(
    ("before", "words"),
    [
        ({"groups": 3}, "begun on 3 device(s), resumed on 1: batch norm and mixing"),
        ({"devices": 3}, "begun on 3 device(s), resumed on 8: the results are equal to rounding"),
    ],
)
def test_other_devices_are_named(before, words, whole_run, tmp_path, capsys):
    workdir = shutil.copytree(whole_run[0], tmp_path / "copy")
    checkpoint = workdir / "checkpoints" / "12"
    (checkpoint / "checksums.json").unlink()
    progress = checkpoint / "progress" / "metadata"
    progress.write_text(json.dumps(json.loads(progress.read_text()) | before))
    runs.train(helpers.tiny_config(), workdir)
    assert words in capsys.readouterr().out


@with_whole_run
def test_workdir_of_another_config_is_refused(whole_run):
    workdir, _ = whole_run
    message = "holds a run of another config: optimizer.momentum: stored 0.9, given 0.95"
    with pytest.raises(InputError, match=message):
        runs.train(helpers.tiny_config(optimizer__momentum=0.95), workdir)
    with claim_workdir(workdir, helpers.tiny_config(loader__workers=1)):
        pass


@with_whole_run
def test_going_back_with_another_rate(whole_run, tmp_path):
    """The metrics up to there stay, the others are new; nothing is deleted."""
    workdir = shutil.copytree(whole_run[0], tmp_path / "copy")
    before = (workdir / "metrics.jsonl").read_bytes()
    other = helpers.tiny_config(optimizer__base_learning_rate=0.01)
    with pytest.raises(InputError, match=r"no checkpoint of step 4; there are \[9, 12\]"):
        runs.train(other, workdir, from_step=4)
    assert (workdir / "config.json").read_bytes() == (whole_run[0] / "config.json").read_bytes()
    with pytest.raises(InputError, match=r"mix.mixup|model.planes"):
        runs.train(helpers.tiny_config(model__planes=(8, 8, 8, 16)), workdir, from_step=9)
    runs.train(other, workdir, from_step=9)
    (kept,) = workdir.glob("metrics-before-*.jsonl")
    assert kept.read_bytes() == before
    old = [json.loads(line) for line in before.splitlines()]
    for line, stored in zip(read_metrics(workdir), old, strict=True):
        assert (line == stored) == (line["step"] <= 9), line
    assert json.loads((workdir / "config.json").read_text())["optimizer"][
        "base_learning_rate"
    ] == pytest.approx(0.01)
    assert [path.name[:12] for path in (workdir / "checkpoints").glob("12.*")] == ["12.replaced-"]


@with_whole_run
def test_moved_folder_of_images_and_lines_of_the_log_may_change(whole_run, capsys):
    config = helpers.tiny_config(log_every_steps=3)
    check_workdir(whole_run[0], config)
    config = helpers.tiny_config(dataset="folder:/elsewhere")
    with pytest.raises(InputError, match="dataset: stored 'sklearn_digits'"):
        check_workdir(whole_run[0], config)


def test_divergence_names_the_step_and_keeps_the_checkpoint(tmp_path):
    # The rate warms up from 0: the first steps and the checkpoint after step 3 are finite.
    config = helpers.tiny_config(
        optimizer__base_learning_rate=1e25, optimizer__warmup_epochs=1.0, optimizer__momentum=0.0
    )
    config.optimizer.weight_decay = 1e15
    words = r"step \d+: (loss|grad_norm) is (nan|inf).*or start again and, for example, a lower"
    with pytest.raises(DivergenceError, match=words):
        runs.train(config, tmp_path)
    written = json.loads((tmp_path / "divergence_0.json").read_text())
    assert len(written["records"]) == 240
    for line in read_metrics(tmp_path):
        assert all(math.isfinite(value) for value in line.values())


class BrokenStatistics(Classification):
    """Running statistics become NaN; the loss and the gradients do not depend on them."""

    def loss(self, *args):
        loss, aux = super().loss(*args)
        norm = aux.batch_stats["bn2"]
        broken = {"bn2": norm | {"mean": norm["mean"] * math.nan}}
        return loss, aux._replace(batch_stats=aux.batch_stats | broken)


def test_statistics_that_are_not_finite_are_named(tmp_path):
    task = BrokenStatistics(SmallNet(), 10, 32)
    batches = SimpleNamespace(
        train=lambda start_step: (random_batch(32) for _ in range(10)),
        train_keys=lambda step: ["a", "b", "c"],
    )
    run = dataclasses.replace(make_run(task, optax.sgd(0.1), log_every=2), batches=batches)
    with pytest.raises(DivergenceError, match="step 2: batch_stats/bn2/mean is nan; its 3 records"):
        fit(run, SimpleNamespace(any=lambda: False, steps=list), tmp_path)
    assert json.loads((tmp_path / "divergence_0.json").read_text())["step"] == 2


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"batch_size": 12}, "batch_size 12 must be a positive multiple of the 8 devices"),
        ({"batch_size": 2000}, "batch_size 2000 must not exceed the 1437 training images"),
        ({"epochs": 0.0}, "epochs must be positive"),
        ({"patience": -1}, "patience must not be negative; got -1"),
        ({"image_size": 31}, "image_size must be a side of at least 32 pixels"),
        ({"image_size": (0, 32)}, "image_size must be a side .* or pairs"),
        ({"image_size": ((0, "32"),)}, "image_size must be a side .* or pairs"),
        ({"eval_image_size": 16}, "eval_image_size must be at least 32; got 16"),
        ({"augment__shift": 0.7}, r"augment.shift must be in \[0, 0.5\]"),
        ({"mix__mixup": -0.1}, "mix.mixup must not be negative"),
        ({"mix__cutmix": float("nan")}, "mix.cutmix must not be negative, and finite; got nan"),
        ({"model__dtype": "float16"}, "model.dtype float16 is not for training"),
        ({"loss__label_smoothing": 1.0}, r"loss.label_smoothing must be in \[0, 1\)"),
        ({"optimizer__momentum": 1.0}, r"optimizer.momentum must be in \[0, 1\)"),
        ({"optimizer__weight_decay": -1.0}, "optimizer.weight_decay must not be negative"),
        ({"optimizer__base_learning_rate": 0.0}, "base_learning_rate must be positive"),
        ({"optimizer__warmup_epochs": 2.0}, "warmup_epochs in steps, must be in"),
        ({"loader__workers": -1}, "loader.workers must not be negative"),
        ({"checkpoint__keep_last": 0}, "checkpoint.keep_last must be at least 1"),
        ({"model__name": "resnet51"}, "unknown model 'resnet51'"),
    ],
)
def test_bad_values_are_named(overrides, message, tmp_path):
    with pytest.raises(InputError, match=message):
        runs.train(helpers.tiny_config(**overrides), tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints" / "0").exists()


def test_metrics_after_the_checkpoint_are_removed(tmp_path):
    with MetricsWriter(tmp_path, 0) as writer:
        for step in (1, 2, 3):
            writer.write(step, {"loss": step / 3})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # killed while writing
    with MetricsWriter(tmp_path, 2) as writer:
        writer.write(3, {"loss": 0.25})
    expected = [{"step": 1, "loss": 1 / 3}, {"step": 2, "loss": 2 / 3}, {"step": 3, "loss": 0.25}]
    assert read_metrics(tmp_path) == expected


def test_bf16_trains():
    task = small_task(dtype=jnp.bfloat16)
    optimizer = optax.sgd(0.05)
    step = jax.jit(make_train_step(make_run(task, optimizer)))
    state = create_state(jax.jit(task.init)(jax.random.key(0)), optimizer)
    batch, losses = random_batch(16), []
    for _ in range(10):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0]
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(state.params))
