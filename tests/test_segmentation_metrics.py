"""The confusion matrix and its scores, against the authors' and plain NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import segmentation_golden as golden

from resnest_jax.data.label_tables import IGNORED
from resnest_jax.tasks.segmentation.metrics import ConfusionMatrix, confusion_matrix
from resnest_jax.training.mesh import batch_sharding, make_mesh, replicated
from resnest_jax.training.task import EvalOutput

METRIC = golden.cases("metric")
UNKNOWN = 254  # a label that is neither a class nor ignored: 255 in the goldens, which ignore -1


def batches(case: dict):
    """Yield the labels and predictions of a case, uint8."""
    random = np.random.RandomState(case["seed"])
    shape = (case["n"], case["h"], case["w"])
    for _ in range(case["batches"]):
        label = random.randint(*case["label"], shape)
        other = random.randint(*case["pred"], shape)
        same = random.random_sample(shape) < case["agree"]
        prediction = np.where(same & (label >= 0), label, other)
        for value in case["poke"]:
            label[:, :3] = value
        label = np.where(label >= case["nclass"], UNKNOWN, np.where(label < 0, IGNORED, label))
        yield label.astype(np.uint8), prediction.astype(np.uint8)


def logits(prediction: np.ndarray, num_classes: int) -> np.ndarray:
    """Return random logits whose largest is that of the prediction."""
    random = np.random.default_rng(0).random((*prediction.shape, num_classes), np.float32)
    np.put_along_axis(random, prediction[..., None].astype(int), 2, -1)
    return random


@pytest.mark.parametrize("name", METRIC)
@pytest.mark.parametrize("on_device", [True, False])
def test_scores_are_the_authors(name, on_device):
    case = METRIC[name]
    metric = ConfusionMatrix(case["nclass"])
    for label, prediction in batches(case):
        if on_device:
            counts = jax.jit(confusion_matrix)(label, logits(prediction, case["nclass"]))
            metric.update(EvalOutput({"confusion": np.asarray(counts), "loss": 0.0}), {})
        else:
            metric.add(label, prediction)

    def expected(quantity):
        return golden.ARRAYS[f"{name}/{quantity}"]

    np.testing.assert_array_equal(metric.confusion, expected("confusion"))
    assert metric.counts.sum() == expected("labelled")
    absent = expected("union") == 0
    with np.errstate(invalid="ignore"):
        iou = expected("inter") / expected("union")
    np.testing.assert_allclose(metric.iou(), np.where(absent, np.nan, iou), rtol=1e-12)
    found = metric.compute()
    assert found.pop("loss", 0) == 0
    wanted = {"pixel_accuracy": "pixacc", "miou": "miou", "miou_present": "miou_seen"}
    for quantity, golden_name in wanted.items():
        np.testing.assert_allclose(found.pop(quantity), expected(golden_name), rtol=1e-12)
    assert not found


def test_table_by_hand():
    labels = np.array([[0, 0, 0, 1], [1, 9, IGNORED, 3]], np.uint8)
    predictions = np.array([[0, 0, 1, 1], [0, 1, 2, 1]], np.uint8)
    metric = ConfusionMatrix(5)
    metric.add(labels, predictions)
    np.testing.assert_allclose(metric.iou(), [2 / 4, 1 / 5, np.nan, 0, np.nan])
    np.testing.assert_allclose(metric.accuracy(), [2 / 3, 1 / 2, np.nan, 0, np.nan])
    found = metric.compute()
    assert found == pytest.approx(
        {"pixel_accuracy": 3 / 7, "miou": 0.7 / 5, "miou_present": (2 / 4 + 1 / 4) / 3}
    )


def test_loss_is_the_mean_over_labelled_pixels():
    metric = ConfusionMatrix(2)
    for right, loss in ((3, 6.0), (1, 2.5)):
        counts = np.array([[right, 0], [0, 1], [0, 0]], np.int32)
        metric.update(EvalOutput({"confusion": counts, "loss": np.float32(loss)}), {})
    assert metric.compute()["loss"] == pytest.approx(8.5 / 6)


def test_sharded_batches_exchange_only_the_matrix():
    mesh = make_mesh()
    case = METRIC["metric_150"] | {"n": 8}
    ((label, prediction),) = batches(case)
    inputs = jax.device_put((label, logits(prediction, 150)), batch_sharding(mesh))
    compiled = jax.jit(confusion_matrix, out_shardings=replicated(mesh)).lower(*inputs).compile()
    text = compiled.as_text()
    assert "all-reduce" in text
    assert not any(word in text for word in ("all-gather", "all-to-all", "collective-permute"))
    metric = ConfusionMatrix(150)
    metric.add(label, prediction)
    np.testing.assert_array_equal(compiled(*inputs), metric.counts)
    assert metric.counts.sum() == np.sum(label != IGNORED)


def test_equal_logits_predict_the_first_class():
    labels = jnp.array([[[0, 1]]], jnp.uint8)
    counts = confusion_matrix(labels, jnp.zeros((1, 1, 2, 2)))
    np.testing.assert_array_equal(counts, [[1, 0], [1, 0], [0, 0]])
