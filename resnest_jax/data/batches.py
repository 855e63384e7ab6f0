"""The batches of a run, from a data set, transforms and an order."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import grain
import jax
import numpy as np

from resnest_jax.data.decode import decode_image
from resnest_jax.data.images import Images
from resnest_jax.data.loader import (
    Element,
    EvalTransform,
    HostBatches,
    HostShard,
    element_at,
    eval_batches,
    eval_slots,
    train_batches,
)
from resnest_jax.data.order import grouped, shuffled, spread
from resnest_jax.data.sources.records import Dataset, Records
from resnest_jax.errors import InputError


class TrainTransform(Protocol):
    """A random transform, like ``grain.transforms.RandomMap``.

    Records of a group (see ``Batches``) give elements of equal shapes.
    """

    @property
    def specs(self) -> tuple[dict[str, jax.ShapeDtypeStruct], ...]:
        """Shapes and dtypes of an element, of every group."""
        ...

    def random_map(self, element: dict[str, Any], rng: np.random.Generator) -> Element: ...


@dataclasses.dataclass(frozen=True)
class LoaderOptions:
    """Options for reading records.

    Attributes:
      batch_size, eval_batch_size: images per batch, over all processes.
      seed: seed of order and augmentation.
      repeats: see ``order.shuffled``.
      spread_repeats: put the copies of a record far apart in the batch.
      balanced: train on every class equally often.
      workers: see ``loader.train_batches``.
      max_unreadable, unreadable_log: see ``images.Images``.
    """

    batch_size: int
    eval_batch_size: int
    seed: int = 0
    repeats: int = 1
    spread_repeats: bool = False
    balanced: bool = False
    workers: int = 0
    max_unreadable: int = 0
    unreadable_log: Path | None = None


class EvalBatches:
    """This process's part of the evaluation batches.

    Attributes:
      num_eval: images.

    Args:
      records: the encoded images.
      transform: transform of a decoded record to an element.
      decode, groups: see ``images.Images``; a batch is of one group.

    Raises:
      InputError: if a value is out of range.
    """

    def __init__(
        self,
        records: Records,
        transform: EvalTransform,
        options: LoaderOptions,
        decode: Callable[[dict[str, Any]], dict[str, Any]] = decode_image,
        groups: np.ndarray | None = None,
    ):
        if options.workers < 0:
            raise InputError(f"loader.workers must not be negative; got {options.workers}")
        self.num_eval = len(records)
        self._eval_shard = HostShard(
            options.eval_batch_size, jax.process_index(), jax.process_count()
        )
        self._eval_images = Images(
            records, options.max_unreadable, options.unreadable_log, decode, groups
        )
        self._eval_transform, self._workers = transform, options.workers

    def eval(self, workers: int | None = None) -> HostBatches:
        """Yield every evaluation image once, with ``workers`` processes or those of the options."""
        workers = self._workers if workers is None else workers
        return eval_batches(
            self._eval_images, self._eval_transform, self._eval_shard, workers=workers
        )

    def eval_indices(self, step: int) -> list[int]:
        """Return the indices of the records of this process's part; padding is negative."""
        return [self._eval_slots[i] for i in self._eval_shard.step_elements(step)]

    @functools.cached_property
    def _eval_slots(self) -> list[int]:
        return eval_slots(self._eval_images.groups, self._eval_shard.batch_size)


class Batches(EvalBatches):
    """This process's part of the training and evaluation batches.

    Attributes:
      class_names: names of the labels.
      num_train, num_eval: images in each split.

    Args:
      dataset: result of ``sources.open_dataset``.
      train_transforms: pairs (first step, transform), starting at step 0.
      eval_transform: transform of a decoded record to an element.
      decode: see ``images.Images``.
      groups: group of each training record and of each evaluation record, int (N,), if their
        elements have different shapes; a batch is of one group.

    Raises:
      InputError: if a value is out of range.
    """

    def __init__(
        self,
        dataset: Dataset,
        train_transforms: Sequence[tuple[int, TrainTransform]],
        eval_transform: EvalTransform,
        options: LoaderOptions,
        decode: Callable[[dict[str, Any]], dict[str, Any]] = decode_image,
        groups: tuple[np.ndarray, np.ndarray] | None = None,
    ):
        train_groups, eval_groups = groups or (None, None)
        super().__init__(dataset.eval, eval_transform, options, decode, eval_groups)
        self.class_names = dataset.class_names
        self.num_train = len(dataset.train)
        if self.num_train < options.batch_size:
            raise InputError(
                f"batch_size {options.batch_size} must not exceed the {self.num_train} training "
                "images"
            )
        self._shard = HostShard(options.batch_size, jax.process_index(), jax.process_count())
        self._records, self._options = dataset.train, options
        self._train_images = Images(
            dataset.train, options.max_unreadable, options.unreadable_log, decode, train_groups
        )
        self._transforms = train_transforms
        self._groups = train_groups
        self._labels = dataset.train_labels() if options.balanced else None
        self._indices = self._order(grain.MapDataset.range(self.num_train))

    def train(self, start_step: int, workers: int | None = None) -> HostBatches:
        """Yield training batches endlessly, starting at a step; ``workers`` as in ``eval``."""
        order = self._order(grain.MapDataset.source(self._train_images))
        ends = [step for step, _ in self._transforms[1:]] + [None]
        for (_, transform), end in zip(self._transforms, ends, strict=True):
            if end is not None and end <= start_step:
                continue
            batches = train_batches(
                order.random_map(transform.random_map),
                self._shard,
                start_step=start_step,
                workers=self._workers if workers is None else workers,
            )
            try:
                yield from itertools.islice(batches, None if end is None else end - start_step)
            finally:
                batches.close()
            start_step = end or 0  # the last transform has no end

    def train_keys(self, step: int) -> list[str]:
        """Return the record keys of this process's part of a batch; steps count from 0."""
        elements = self._shard.step_elements(step)
        return [self._records.key(element_at(self._indices, i)) for i in elements]

    def train_specs(self) -> tuple[dict[str, jax.ShapeDtypeStruct], ...]:
        """Return every shape of a global training batch, in the order of training."""
        return tuple(
            {
                name: jax.ShapeDtypeStruct((self._shard.batch_size, *leaf.shape), leaf.dtype)
                for name, leaf in spec.items()
            }
            for _, transform in self._transforms
            for spec in transform.specs
        )

    def _order(self, dataset: grain.MapDataset) -> grain.MapDataset:
        options = self._options
        if self._groups is not None:
            return grouped(dataset, self._groups, options.seed, options.batch_size)
        order = shuffled(dataset, options.seed, options.repeats, self._labels)
        if options.spread_repeats:
            order = spread(order, options.repeats, options.batch_size)
        return order
