"""Records to batches with Grain: the order depends on the seed and the step alone."""

import os
from collections.abc import Iterator

import grain.python as grain
import numpy as np
from absl import flags

from resnest_jax.data.sources import Records
from resnest_jax.data.transforms import EvalTransform, TrainTransform

Batch = dict[str, np.ndarray]

PREFETCH = 4  # batches


def train_batches(
    records: Records,
    transform: TrainTransform,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    workers: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Endless batches, reshuffled every epoch, from ``start_step`` on.

    Args:
      batch_size: images over all processes, a multiple of ``process_count``.
      start_step: batches to skip, at no cost: how a run resumes.
      workers: processes that decode; 0 decodes on threads of this one. The batches do not
        depend on it.

    Yields:
      ``{"image": (B, S, S, 3) uint8, "label": (B,) int32}`` with this process's share of the
      images. Close the generator to end its workers.

    Raises:
      InputError: while iterating, if an image cannot be decoded.
    """
    dataset = grain.MapDataset.source(records).seed(seed).shuffle().repeat()
    # Augmented before the processes take their shares: their number changes nothing.
    dataset = dataset.random_map(transform)[process_index::process_count]
    dataset = dataset.batch(batch_size // process_count, drop_remainder=True)[start_step:]
    yield from _iterate(dataset, workers)


def eval_batches(
    records: Records,
    transform: EvalTransform,
    *,
    batch_size: int,
    workers: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Every record once, in order; the last batch is filled up with blanks.

    Yields:
      Batches as in ``train_batches`` with ``"mask": (B,) bool``, false for a blank. All
      processes yield equally many.

    Raises:
      InputError: while iterating, if an image cannot be decoded.
    """
    padded = -(-len(records) // batch_size) * batch_size
    dataset = grain.MapDataset.range(padded).map(_Padded(records, transform))
    dataset = dataset[process_index::process_count].batch(batch_size // process_count)
    yield from _iterate(dataset, workers)


class _Padded(grain.MapTransform):
    """Index -> transformed record with its mask; a blank past the end."""

    def __init__(self, records: Records, transform: EvalTransform):
        self.records = records
        self.transform = transform

    def map(self, index: int) -> Batch:
        if index < len(self.records):
            return self.transform.map(self.records[index]) | {"mask": np.True_}
        image = np.zeros((self.transform.size, self.transform.size, 3), np.uint8)
        return {"image": image, "label": np.int32(0), "mask": np.False_}


def _iterate(dataset: grain.MapDataset, workers: int) -> Iterator[Batch]:
    # More threads than cores cost a third of the rate.
    threads = max(1, (os.cpu_count() or 1) // max(1, workers))
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(PREFETCH, threads))
    dataset = dataset.to_iter_dataset(options)
    if workers:
        if not flags.FLAGS.is_parsed():  # Grain's workers read absl flags
            flags.FLAGS.mark_as_parsed()
        dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    iterator = iter(dataset)
    try:
        yield from iterator
    finally:
        iterator.close()
