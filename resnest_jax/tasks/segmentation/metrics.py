"""Pixel accuracy and intersection over union, from a confusion matrix."""

import jax
import jax.numpy as jnp
import numpy as np

from resnest_jax.data.label_tables import IGNORED
from resnest_jax.training.task import EvalOutput, HostBatch


def confusion_matrix(labels: jax.Array, logits: jax.Array) -> jax.Array:
    """Count the pixels of a batch by label and by predicted class.

    Args:
      labels: (B, H, W) unsigned integers; pixels of ``IGNORED`` do not count.
      logits: (B, H, W, C), float; the largest is the prediction, the first of equal ones.

    Returns:
      int32 (C + 1, C): a row per class, and a last one of labels that are not a class.
    """
    num_classes = logits.shape[-1]
    rows = num_classes + 1
    row = jnp.minimum(labels, num_classes).astype(jnp.int32)
    cell = row * num_classes + jnp.argmax(logits, -1)
    beyond = rows * num_classes  # bincount drops it
    cell = jnp.where(labels == IGNORED, beyond, cell)
    # A product of one-hot matrices takes a hundred times as long, and a gigabyte for 150 classes.
    return jnp.bincount(cell.ravel(), length=beyond).astype(jnp.int32).reshape(rows, num_classes)


class ConfusionMatrix:
    """Metric of segmentation: scores of the pixels of a whole set.

    Labels that are neither a class nor ``IGNORED`` count as wrong, and enlarge the union of the
    predicted class.

    Attributes:
      counts: int64 (C + 1, C), see ``confusion_matrix``.
    """

    def __init__(self, num_classes: int):
        self.counts = np.zeros((num_classes + 1, num_classes), np.int64)
        self._loss: float | None = None

    def update(self, output: EvalOutput, batch: HostBatch) -> None:
        """Add the sums of a batch: ``confusion``, and ``loss`` over the labelled pixels."""
        del batch
        self.counts += output.sums["confusion"]
        self._loss = (self._loss or 0.0) + float(output.sums["loss"])

    def add(self, labels: np.ndarray, predictions: np.ndarray) -> None:
        """Add label maps of equal shape, both of unsigned integers."""
        counted = labels != IGNORED
        num_classes = self.counts.shape[1]
        row = np.minimum(labels[counted], num_classes).astype(np.int64)
        cell = row * num_classes + predictions[counted]
        self.counts += np.bincount(cell, minlength=self.counts.size).reshape(self.counts.shape)

    @property
    def confusion(self) -> np.ndarray:
        """Pixels by label (row) and by predicted class, int64 (C, C)."""
        return self.counts[:-1]

    def iou(self) -> np.ndarray:
        """Return the intersection over union of each class (C,), NaN for absent ones.

        Absent classes are neither labelled nor predicted.
        """
        return _iou(self.confusion, predicted=self.counts.sum(0))

    def accuracy(self) -> np.ndarray:
        """Return the fraction of each class's pixels that are right (C,), NaN without pixels."""
        return _ratio(np.diag(self.confusion), self.confusion.sum(1))

    def compute(self) -> dict[str, float]:
        """Return the scores of the whole set.

        ``miou`` is the mean IoU over all classes with 0 for absent ones, as the authors report it.
        ``miou_present`` is the usual mean over the present classes, NaN if there are none; pixels
        whose label is not a class do not count in it. ``pixel_accuracy`` is the fraction of the
        labelled pixels that are right, and ``loss`` their mean loss. Added label maps have no loss.
        """
        iou, usual = self.iou(), _iou(self.confusion, predicted=self.confusion.sum(0))
        present = ~np.isnan(usual)
        pixels = max(int(self.counts.sum()), 1)
        scores = {
            "pixel_accuracy": float(np.trace(self.confusion) / pixels),
            "miou": float(np.nansum(iou) / len(iou)),
            "miou_present": float(usual[present].mean()) if present.any() else float("nan"),
        }
        return scores if self._loss is None else scores | {"loss": self._loss / pixels}


def _iou(confusion: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    right = np.diag(confusion)
    return _ratio(right, confusion.sum(1) + predicted - right)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.where(whole > 0, part / np.maximum(whole, 1), np.nan)
