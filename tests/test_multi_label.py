"""Images that a CSV file lists, with one label or several: reading, metric, training."""

import dataclasses

import helpers
import jax
import numpy as np
import pytest
from records import encode
from small_net import SmallNet

from resnest_jax import recipe
from resnest_jax.data.sources import open_dataset
from resnest_jax.errors import InputError
from resnest_jax.tasks.classification import evaluate, predict
from resnest_jax.tasks.classification.multi_label import (
    MeanAveragePrecision,
    MultiLabel,
    mean_average_precision,
)
from resnest_jax.training.checkpoints import Checkpoints
from resnest_jax.training.loop import fit
from resnest_jax.training.state import initial_state
from resnest_jax.training.task import EvalOutput
from resnest_jax.workdir import claim_workdir

NAMES = ("blue", "green", "red")


def write_table(path, rows, header="file,label"):
    """Write images of 32 pixels, bright in the colours of their labels, and their list."""
    rng = np.random.default_rng(0)
    for file, label in rows:
        image = rng.integers(0, 60, (32, 32, 3), np.uint8)
        for name in label.split(";"):
            if name in NAMES:
                image[..., 2 - NAMES.index(name)] += 180
        (path.parent / file).parent.mkdir(parents=True, exist_ok=True)
        (path.parent / file).write_bytes(encode(image))
    path.write_text("\n".join([header, *(",".join(row) for row in rows)]) + "\n")


def numbered(labels):
    return [(f"{i:03d}.png", label) for i, label in enumerate(labels)]


def test_every_fifth_row_is_held_out(tmp_path):
    labels = ["red", "blue;red", "", "green", "green; blue", "red", "red", "red", "red", "blue"]
    write_table(tmp_path / "list.csv", numbered(labels))
    dataset = open_dataset(f"csv:{tmp_path}/list.csv", multi_label=True)
    assert dataset.class_names == NAMES
    assert dataset.eval.labels().tolist() == [[1, 1, 0], [1, 0, 0]]
    assert dataset.eval[0]["label"] == [1, 1, 0]
    assert dataset.eval.key(0) == str(tmp_path / "004.png")
    assert dataset.train.labels()[:4].tolist() == [[0, 0, 1], [1, 0, 1], [0, 0, 0], [0, 1, 0]]
    assert (len(dataset.train), len(dataset.eval)) == (8, 2)
    assert dataset.notes == (f"{tmp_path}/list.csv: 1 images without a label",)


def test_a_file_for_each_split_with_one_label_per_image(tmp_path):
    """Columns in any order, a byte order mark, blank lines, quoted values, subfolders."""
    write_table(tmp_path / "val.csv", [("a,b.png", "red")])
    write_table(tmp_path / "train.csv", [("sub/x.png", "red"), ("y.png", "blue")])
    (tmp_path / "val.csv").write_text('\ufefflabel,file\r\n\r\n"red","a,b.png"\r\n')
    dataset = open_dataset(f"csv:{tmp_path}")
    assert dataset.class_names == ("blue", "red")
    assert dataset.train.labels().tolist() == [1, 0]
    assert [dataset.train.key(i) for i in range(2)] == [
        str(tmp_path / name) for name in ("sub/x.png", "y.png")
    ]
    assert dataset.eval[0]["label"] == 1
    named = open_dataset(f"csv:{tmp_path}", eval_split="train")
    assert len(named.eval) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: the header must be file,label; got ''"),
        ("file,label,size\n", "line 1: the header must be file,label; got 'file,label,size'"),
        ("image,label\n", "line 1: the header must be file,label; got 'image,label'"),
        ("file,label\n", "lists no images"),
        ("file,label\n0.png,\n", "has no labels"),
        ("file,label\n0.png,a\n\n9.png,a\n", r"line 4: no such file: .*9\.png"),
        ("file,label\n,a\n", "line 2: no such file"),
        ("file,label\n0.png\n", "line 2: 1 fields; expected 2"),
        ("file,label\n0.png,a,b\n", "line 2: 3 fields; expected 2"),
        ("file,label\n0.png,a\n0.png,b\n", r"line 3: .*0\.png is listed before, in .*line 2"),
        ("file,label\n0.png,a;;b\n", "line 2: labels must differ and must not be empty.*'a;;b'"),
        ("file,label\n0.png,a;a\n", "line 2: labels must differ"),
        ('file,label\n0.png,"a\n', "line 2: unexpected end of data"),
        ("file,label\n0.png,a\n", "lists 1 images; it takes 5"),
        (b"file,label\n0.png,\xff\n", "must be a CSV file in UTF-8"),
    ],
)
def test_bad_files_are_named(tmp_path, text, message):
    (tmp_path / "0.png").touch()
    path = tmp_path / "list.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=message) as caught:
        open_dataset(f"csv:{path}", multi_label=True)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_labels_and_files_that_do_not_fit_are_named(tmp_path):
    write_table(tmp_path / "train.csv", numbered(["red", "red;blue"]))
    with pytest.raises(InputError, match=r"no validation.csv or val.csv or test.csv .*\['train"):
        open_dataset(f"csv:{tmp_path}")
    write_table(tmp_path / "val.csv", numbered(["red", "green"]))
    with pytest.raises(InputError, match=r"val.csv, line 3: the class 'green' is missing"):
        open_dataset(f"csv:{tmp_path}", multi_label=True)
    with pytest.raises(InputError, match=r"train.csv, line 3: 2 labels .*set multi_label to True"):
        open_dataset(f"csv:{tmp_path}")
    with pytest.raises(InputError, match=r"need a folder with train.csv"):
        open_dataset(f"csv:{tmp_path}/train.csv", eval_split="val")
    with pytest.raises(InputError, match=r"cannot read .*absent.csv: No such file"):
        open_dataset(f"csv:{tmp_path}/absent.csv")
    with pytest.raises(InputError, match="multi_label needs a dataset csv:PATH; got 'folder:x'"):
        open_dataset("folder:x", multi_label=True)


def naive_average_precision(labels, scores):
    """At each distinct score from the top: the growth of the recall times the precision."""
    total, before = 0.0, 0.0
    for threshold in sorted(set(scores.tolist()), reverse=True):
        chosen = scores >= threshold
        recall = labels[chosen].sum() / labels.sum()
        total += (recall - before) * labels[chosen].mean()
        before = recall
    return total


def test_mean_average_precision_against_its_definition():
    """With equal scores; a class without images does not count; the padding does not either."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (40, 4))
    labels[:, 2] = 0
    scores = rng.integers(0, 9, (40, 4)).astype(np.float32)
    expected = np.mean([naive_average_precision(labels[:, c], scores[:, c]) for c in (0, 1, 3)])
    np.testing.assert_allclose(mean_average_precision(labels, scores), expected, rtol=1e-12)

    metric = MeanAveragePrecision()
    for part in (slice(0, 16), slice(16, 32), slice(32, 48)):
        valid = np.arange(48)[part] < 40
        rows = [np.resize(a[part], (16, 4)) for a in (labels, scores)]
        batch = {"label": rows[0].astype(np.int32), "valid": valid}
        metric.update(EvalOutput({"count": valid.sum()}, rows[1]), batch)
    np.testing.assert_allclose(metric.compute()["map"], expected, rtol=1e-12)

    assert mean_average_precision(np.zeros((3, 2), int), np.zeros((3, 2))) == 0
    nan = np.array([[np.nan], [1.0], [0.0]])
    assert mean_average_precision(np.array([[1], [0], [0]]), nan) == pytest.approx(1 / 3)


def test_it_learns_which_colours_are_there(tmp_path):
    labels = [
        ";".join(np.array(NAMES)[np.unravel_index(i % 8, (2, 2, 2)) == np.array(1)])
        for i in range(85)
    ]
    write_table(tmp_path / "list.csv", numbered(labels))
    config = helpers.tiny_config(
        dataset=f"csv:{tmp_path}/list.csv",
        multi_label=True,
        loss__name="sigmoid",
        loss__label_smoothing=0.0,
        batch_size=16,
        steps=40,
        eval_every_steps=40,
    )
    run = recipe.build(config)
    assert next(run.batches.train(0))["label"].shape == run.batches.train_specs()[0]["label"].shape
    run = dataclasses.replace(run, task=dataclasses.replace(run.task, model=SmallNet(3)))
    with Checkpoints(tmp_path, keep_last=1, best_metric=run.task.best_metric) as checkpoints:
        summary = fit(run, checkpoints, tmp_path)
    assert summary["best_eval_map"] == summary["eval_map"] > 0.9
    assert "eval_top1" not in summary


def test_predict_prints_the_likely_classes_of_a_run(tmp_path, capsys):
    """A run of grey images whose head gives every image the same logits."""
    write_table(tmp_path / "list.csv", numbered(["red;blue", "green"] * 5))
    config = helpers.tiny_config(
        dataset=f"csv:{tmp_path}/list.csv", multi_label=True, channels=1, batch_size=8
    )
    config.loss.update({"name": "sigmoid", "label_smoothing": 0.0})
    run = recipe.build(config)
    state = initial_state(run)
    head = {"kernel": 0 * state.params["head"]["kernel"], "bias": np.float32([1.0, -3.0, 2.0])}
    state = state.replace(params={**state.params, "head": head})
    workdir = tmp_path / "run"
    with (
        claim_workdir(workdir, config),
        Checkpoints(workdir, keep_last=1, best_metric="eval_map") as checkpoints,
    ):
        checkpoints.save(state, {"eval_map": 0.0}, {})
    lines = {0.5: ["  88.08 %  red", "  73.11 %  blue"], 0.8: ["  88.08 %  red"], 0.9: []}
    for threshold, expected in lines.items():
        files, weights = [str(tmp_path / "000.png")], str(tmp_path / "run")
        assert predict.run(files, weights=weights, threshold=threshold) == 0
        assert capsys.readouterr().out.splitlines() == [*files, *expected]
    best = evaluate.run(None, weights, "best")
    assert best["step"] == 0
    truth = np.array([[1, 0, 1], [0, 1, 0]])  # the held out rows; all images have equal scores
    assert best["eval_map"] == pytest.approx(truth.mean())
    p = 1 / (1 + np.exp([-1.0, 3.0, -2.0]))
    expected = -np.log(np.where(truth, p, 1 - p)).mean()
    assert best["eval_loss"] == pytest.approx(expected, rel=1e-5)
    with pytest.raises(InputError, match="are for runs with one label per image"):
        evaluate.run(None, weights, options=evaluate.Options(tta=("flip",)))
    with pytest.raises(InputError, match="are for runs with one label per image"):
        predict.run(files, weights=weights, outputs=predict.Outputs(tmp_path / "why.png"))


class Fixed:
    """A model with given logits."""

    logits = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)

    def apply(self, *_, **__):
        return self.logits, {"batch_stats": {}}


def test_the_loss_is_the_mean_cross_entropy_of_every_class():
    labels = np.array([[0, 1, 1], [0, 0, 0], [1, 0, 1], [1, 1, 1]], np.int32)
    batch = {"image": np.zeros((4, 8, 8, 3), np.uint8), "label": labels}
    task = MultiLabel(Fixed(), 3, 8, loss_name="sigmoid")
    loss, _ = task.loss({}, batch, jax.random.key(0), 0.0)
    p = 1 / (1 + np.exp(-Fixed.logits.astype(np.float64)))
    expected = -np.log(np.where(labels, p, 1 - p)).mean()
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "multi_label needs a dataset csv:PATH; got 'sklearn_digits'"),
        ({"sampling": "balanced"}, "sampling 'balanced' needs one label per image"),
    ],
)
def test_configs_that_do_not_fit_are_named(fields, message):
    with pytest.raises(InputError, match=message):
        recipe.build(helpers.tiny_config(multi_label=True, **fields))
    with pytest.raises(InputError, match=r"needs loss.name 'sigmoid'; got 'softmax'"):
        MultiLabel(Fixed(), 3, 8)
    with pytest.raises(InputError, match=r"needs loss.label_smoothing 0; got 0.1"):
        MultiLabel(Fixed(), 3, 8, loss_name="sigmoid", label_smoothing=0.1)
