"""Interfaces that training needs: a task and its data."""

from collections.abc import Generator, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

PyTree = Any
Batch = dict[str, jax.Array]  # global arrays, the first axis B sharded over the mesh
HostBatch = dict[str, np.ndarray]  # the part of this process; in evaluation with "valid" (B,) bool
Metrics = dict[str, jax.Array]
Variables = Mapping[str, PyTree]  # {"params", "batch_stats"}

KEPT = 0.9  # part of the running statistics that every batch norm keeps in a step


class Aux(NamedTuple):
    """Further results of a loss.

    Attributes:
      batch_stats: the new running statistics: ``KEPT`` of the old ones, the rest is the batch's.
      metrics: scalars to log in addition to ``loss`` and ``grad_norm``.
    """

    batch_stats: PyTree
    metrics: Metrics


class EvalOutput(NamedTuple):
    """Result of an evaluation step on one batch.

    Attributes:
      sums: sums over the valid images of the global batch, the same on every device.
      per_image: arrays (B, ...), sharded over the devices; each process reads its own images.
    """

    sums: Metrics
    per_image: PyTree = None


class Metric(Protocol):
    """Collector of the outputs of one evaluation, on the host."""

    def update(self, output: EvalOutput, batch: HostBatch) -> None:
        """Add a batch.

        Args:
          output: NumPy arrays; ``per_image`` holds the images of this process.
          batch: the part of this process; ``valid`` marks the images that count.
        """
        ...

    def compute(self) -> dict[str, float]:
        """Return the values, the same in every process."""
        ...


class Evaluator(Protocol):
    """A model with its evaluation."""

    def eval_step(self, variables: Variables, batch: Batch) -> EvalOutput:
        """Evaluate a batch; images whose ``valid`` is false do not count."""
        ...

    def metric(self) -> Metric:
        """Return a new metric, for one evaluation."""
        ...


class Task(Evaluator, Protocol):
    """A model with its loss and its evaluation.

    Attributes:
      best_metric: evaluation metric that selects the best checkpoint; higher is better.
      curves: panel of ``curves.png`` -> metric in ``metrics.jsonl`` -> label.
    """

    @property
    def best_metric(self) -> str: ...

    @property
    def curves(self) -> Mapping[str, Mapping[str, str]]: ...

    def init(self, rng: jax.Array) -> Variables:
        """Return newly initialised variables."""
        ...

    def loss(
        self, variables: Variables, batch: Batch, rng: jax.Array, progress: jax.Array
    ) -> tuple[jax.Array, Aux]:
        """Return the mean loss of a batch.

        Args:
          progress: the completed fraction of training, from 0 to 1.
        """
        ...


class EvalBatches(Protocol):
    """The data of an evaluation."""

    @property
    def num_eval(self) -> int: ...

    def eval(self, workers: int | None = None) -> Generator[HostBatch, None, None]:
        """Yield every evaluation image once, with ``workers`` processes or those of the options."""
        ...


class Batches(EvalBatches, Protocol):
    """The data of a run. Generators stop their workers on ``close()``."""

    @property
    def num_train(self) -> int: ...

    @property
    def class_names(self) -> tuple[str, ...]: ...

    def train(
        self, start_step: int, workers: int | None = None
    ) -> Generator[HostBatch, None, None]:
        """Yield training batches endlessly, starting at a step; ``workers`` as in ``eval``."""
        ...

    def train_keys(self, step: int) -> list[str]:
        """Return the record keys of this process's part of a batch; steps count from 0."""
        ...

    def train_specs(self) -> tuple[dict[str, jax.ShapeDtypeStruct], ...]:
        """Return every shape of a global training batch."""
        ...
