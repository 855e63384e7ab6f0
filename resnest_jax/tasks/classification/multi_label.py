"""Classification of images with any number of labels each."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

from resnest_jax.config.classification import BEST_METRIC_OF_MULTI_LABEL
from resnest_jax.errors import InputError
from resnest_jax.models.inputs import normalize
from resnest_jax.tasks.classification.task import Classification, apply_model
from resnest_jax.training.distributed import gather_bytes
from resnest_jax.training.evaluation import Sums
from resnest_jax.training.task import Batch, EvalOutput, HostBatch, Variables


@dataclasses.dataclass(frozen=True)
class MultiLabel(Classification):
    """As ``Classification``, with labels int32 (B, num_classes) of 0 and 1.

    Raises:
      InputError: if the loss is not ``sigmoid``, or labels are smoothed.
    """

    best_metric = BEST_METRIC_OF_MULTI_LABEL
    curves = {
        "loss": {"loss": "train", "eval_loss": "eval"},
        "mean average precision (%)": {"eval_map": "eval"},
    }

    def __post_init__(self):
        super().__post_init__()
        if self.loss_name != "sigmoid":
            raise InputError(f"multi_label needs loss.name 'sigmoid'; got {self.loss_name!r}")
        if self.label_smoothing:
            raise InputError(
                f"multi_label needs loss.label_smoothing 0; got {self.label_smoothing}"
            )

    def inputs(self, rng: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array, None]:
        """Return the training inputs: normalised images and targets (B, num_classes)."""
        labels = batch["label"].astype(jnp.float32)
        return *self.mixing(rng, normalize(batch["image"]), labels), None

    def eval_step(self, variables: Variables, batch: Batch) -> EvalOutput:
        """Return the sums of loss and count over the valid images; the logits of each image."""
        logits = apply_model(self.model, variables, normalize(batch["image"]))
        labels = batch["label"].astype(jnp.float32)
        loss = optax.sigmoid_binary_cross_entropy(logits, labels).mean(-1)
        valid = batch["valid"]
        return EvalOutput({"loss": jnp.where(valid, loss, 0).sum(), "count": valid.sum()}, logits)

    def metric(self) -> "MeanAveragePrecision":
        """Return a metric: the mean loss and ``map``."""
        return MeanAveragePrecision()


class MeanAveragePrecision(Sums):
    """Means, and the mean over classes of the average precision, from the logits of all images."""

    def __init__(self):
        super().__init__()
        self._logits: list[np.ndarray] = []
        self._labels: list[np.ndarray] = []

    def update(self, output: EvalOutput, batch: HostBatch) -> None:
        """Add a batch."""
        super().update(output, batch)
        self._logits.append(output.per_image[batch["valid"]])
        self._labels.append(batch["label"][batch["valid"]])

    def compute(self) -> dict[str, float]:
        """Return the means and ``map``."""
        logits, labels = (_gather(np.concatenate(a)) for a in (self._logits, self._labels))
        return super().compute() | {"map": mean_average_precision(labels, logits)}


def _gather(rows: np.ndarray) -> np.ndarray:
    """Join the rows (N, C) of all processes."""
    parts = gather_bytes(rows.tobytes())
    return np.frombuffer(b"".join(parts), rows.dtype).reshape(-1, rows.shape[1])


def mean_average_precision(labels: np.ndarray, scores: np.ndarray) -> float:
    """Return the mean over classes of scikit-learn's ``average_precision_score``.

    Args:
      labels: 0 or 1 (N, C). Classes without a 1 do not count; if there are no others, the mean is
        0.
      scores: (N, C); NaN is the lowest.
    """
    from sklearn.metrics import average_precision_score  # slow to import

    scores = np.nan_to_num(scores, nan=float(np.finfo(np.float32).min))
    present = np.flatnonzero(labels.any(0))
    found = [average_precision_score(labels[:, c], scores[:, c]) for c in present]
    return float(np.mean(found)) if found else 0.0
