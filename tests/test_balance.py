"""Weights of classes against NumPy, and balanced sampling."""

import grain
import helpers
import jax
import numpy as np
import pytest
from records import Numbered, assert_same_batches, labels_of, take

from resnest_jax import recipe
from resnest_jax.data.batches import Batches, LoaderOptions
from resnest_jax.data.order import shuffled
from resnest_jax.data.sources import Dataset
from resnest_jax.errors import InputError
from resnest_jax.tasks.class_weights import class_weights
from resnest_jax.tasks.classification.mixing import Mixing
from resnest_jax.tasks.classification.task import Classification
from resnest_jax.tasks.classification.transforms import EvalTransform, TrainTransform

LABELS = np.array([0, 2, 2, 1, 2, 0, 2, 2])
WEIGHTS = (0.5, 3.0, 1.25)


class Fixed:
    """A model with given logits."""

    logits = np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32)

    def apply(self, *_, **__):
        return self.logits, {"batch_stats": {}}


def loss_and_inputs(**fields):
    task = Classification(Fixed(), 3, 8, class_weights=WEIGHTS, **fields)
    batch = {"image": np.zeros((8, 8, 8, 3), np.uint8), "label": LABELS}
    rng = jax.random.key(3)
    loss, _ = task.loss({}, batch, rng, 0.0)
    return float(loss), task.inputs(jax.random.split(rng)[0], batch)


def log_softmax():
    logits = Fixed.logits.astype(np.float64)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_weighted_softmax_is_that_of_pytorch(smoothing):
    """``nll_loss`` and the smooth part, both divided by the weights of the labels."""
    w, logs = np.array(WEIGHTS), log_softmax()
    nll = -sum(w[label] * logs[i, label] for i, label in enumerate(LABELS))
    smooth = -sum(w[c] * logs[i, c] for i in range(8) for c in range(3)) / 3
    total = sum(w[label] for label in LABELS)
    expected = ((1 - smoothing) * nll + smoothing * smooth) / total
    loss, _ = loss_and_inputs(label_smoothing=smoothing)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_mixed_images_have_mixed_weights():
    loss, (_, targets, weights) = loss_and_inputs(mixing=Mixing(mixup=5.0, per_sample=True))
    targets, w = np.asarray(targets), np.array(WEIGHTS)
    assert ((targets > 0).sum(1) > 1).any()
    np.testing.assert_allclose(weights[:, 0], targets @ w, rtol=1e-5)
    expected = -(targets * w * log_softmax()).sum() / (targets @ w).sum()
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_weighted_sigmoid_is_that_of_pytorch():
    loss, _ = loss_and_inputs(loss_name="sigmoid")
    p = 1 / (1 + np.exp(-Fixed.logits.astype(np.float64)))
    terms = np.where(np.eye(3)[LABELS] > 0, np.log(p), np.log(1 - p))
    np.testing.assert_allclose(loss, -(terms * np.array(WEIGHTS)).mean(), rtol=1e-5)


def test_balanced_weights_are_inverse_to_the_images():
    data = Dataset(Uneven(8), Uneven(4), ("a", "b", "c")).count_classes, "images"
    weights = class_weights(("balanced",), ("a", "b", "c"), *data)
    np.testing.assert_allclose(weights, [8 / (3 * 2), 8 / (3 * 1), 8 / (3 * 5)])
    assert class_weights((("c", 2), ("a", 0.5)), ("a", "b", "c"), *data) == (0.5, 1.0, 2.0)
    assert class_weights((), ("a", "b", "c"), *data) == ()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("equal",), "loss.class_weights must be 'balanced', or pairs .*got 'equal'"),
        ((("a", 0.0),), r"positive and finite.*got \('a', 0.0\)"),
        ((("a", float("nan")),), "positive and finite.*nan"),
        (("a", 2.0), "pairs of a class and a weight.*got 'a'"),
        ((("cow", 2.0),), "has the class 'cow'; the data set has a, b, c, d"),
        (("balanced",), "needs training images of every class; there are none of d"),
    ],
)
def test_bad_weights_are_named(given, message):
    with pytest.raises(InputError, match=message):
        class_weights(given, ("a", "b", "c", "d"), lambda: np.array([2, 1, 5, 0]), "images")


def test_the_recipe_takes_labels_from_the_data_set():
    """Digits have nearly the same number of images of each class."""
    task = recipe.build(helpers.tiny_config(loss__class_weights=("balanced",))).task
    assert len(task.class_weights) == 10
    np.testing.assert_allclose(task.class_weights, 1, atol=0.05)
    assert len(set(task.class_weights)) > 1
    with pytest.raises(InputError, match=r"sampling must be one of .*; got 'even'"):
        recipe.build(helpers.tiny_config(sampling="even"))


def test_every_round_has_one_record_of_each_class():
    order = shuffled(grain.MapDataset.range(8), 0, labels=LABELS)
    rounds = np.array([order[i] for i in range(60)]).reshape(20, 3)
    classes = LABELS[rounds]
    assert (np.sort(classes) == np.arange(3)).all()
    assert len({tuple(row) for row in classes.tolist()}) > 2
    large = rounds[classes == 2].reshape(4, 5)  # each row is an epoch of the class
    assert (np.sort(large) == np.flatnonzero(LABELS == 2)).all()
    assert len({tuple(row) for row in large.tolist()}) > 1
    twice = shuffled(grain.MapDataset.range(8), 0, 2, labels=LABELS)
    assert [twice[i] for i in range(8)] == rounds.ravel()[:4].repeat(2).tolist()


class Uneven(Numbered):
    """Record i has the label ``LABELS[i]``."""

    def __getitem__(self, index):
        return super().__getitem__(index) | {"label": int(LABELS[index])}

    def labels(self):
        return LABELS


def test_balanced_batches_resume():
    def batches():
        dataset = Dataset(Uneven(8), Uneven(4), ("a", "b", "c"))
        options = LoaderOptions(6, 4, seed=1, balanced=True)
        transforms = [(0, TrainTransform(8, shift=0.25, flip=True))]
        return Batches(dataset, transforms, EvalTransform(8), options)

    whole = take(batches().train(0), 6)
    assert (np.bincount(labels_of(whole)) == 12).all()
    assert_same_batches(take(batches().train(2), 4), whole[2:])
    keys = [int(key.split("#")[1]) for key in batches().train_keys(3)]
    assert LABELS[keys].tolist() == whole[3]["label"].tolist()
