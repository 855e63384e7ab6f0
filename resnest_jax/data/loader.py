"""From records to batches: shuffled without end for training, each record once for evaluation."""

import dataclasses
import multiprocessing
import os
import threading
from collections.abc import Generator

import grain
import numpy as np
from absl import flags

from resnest_jax.data.sources import Records
from resnest_jax.errors import InputError

Batches = Generator[dict[str, np.ndarray], None, None]


def train_batches(
    records: Records,
    transform: grain.transforms.RandomMap,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    workers: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Batches:
    """Yields this host's share of the training batches, for ever, from `start_step` on.

    Batch n depends on the seed and on n alone, random augmentation included: not on the step that
    the run started from, nor on `workers`. All hosts together see the same elements, whatever
    their number. Each epoch is a new permutation; a batch may span two epochs.

    Args:
      records: The training records.
      transform: Makes one element of a record and a numpy generator.
      batch_size: The global batch, a multiple of `process_count`.
      seed: 0..2**32-1.
      start_step: The index of the first batch.
      workers: Worker processes; 0 loads in threads of this process. With workers, the main
        program must be importable without side effects (an `if __name__ == "__main__"` guard).
      process_index: This host.
      process_count: The number of hosts.

    Returns:
      A generator of dicts of stacked elements, B = batch_size / process_count: with TrainTransform
      "image" uint8 (B, S, S, 3) and "label" int32 (B,). Its `close()` ends the workers.

    Raises:
      InputError: `seed` or `workers` out of range; while iterating, whatever `transform` or
        `records` raise as InputError.
    """
    if not 0 <= seed < 2**32:
        raise InputError(f"seed must be in 0..2**32-1, got {seed}")
    dataset = grain.MapDataset.source(records).seed(seed).shuffle().repeat()
    # Before the hosts' shares: the generator of an element then follows from its global index.
    dataset = dataset.random_map(transform)
    dataset = dataset[process_index::process_count]
    dataset = dataset.batch(batch_size // process_count, drop_remainder=True)
    return _read(dataset[start_step:], workers)


def eval_batches(
    records: Records,
    transform: grain.transforms.Map,
    *,
    batch_size: int,
    workers: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Batches:
    """Yields this host's share of the evaluation batches: every record once over all hosts.

    The last batch is filled up with zeros and every host has the same number of batches, so a
    step compiled for one shape serves all. The arguments are those of `train_batches`.

    Returns:
      A generator as of `train_batches`, whose batches also hold "mask" bool (B,): False where the
      element is filling.

    Raises:
      InputError: As `train_batches`.
    """
    padded = -(-len(records) // batch_size) * batch_size
    dataset = grain.MapDataset.range(padded).map(_MaskedElement(records, transform))
    dataset = dataset[process_index::process_count]
    dataset = dataset.batch(batch_size // process_count, drop_remainder=True)
    return _read(dataset, workers)


@dataclasses.dataclass(frozen=True)
class _MaskedElement(grain.transforms.Map):
    """Index -> element with a mask; past the last record, the first one's element zeroed."""

    records: Records
    transform: grain.transforms.Map

    def map(self, element):
        real = element < len(self.records)
        made = self.transform.map(self.records[element if real else 0])
        if not real:
            made = {name: np.zeros_like(value) for name, value in made.items()}
        return {**made, "mask": np.bool_(real)}


def _read(dataset: grain.MapDataset, workers: int) -> Batches:
    """Iterates over a data set of batches in threads, or in worker processes of threads each."""
    if workers < 0:
        raise InputError(f"workers must be 0 or more, got {workers}")
    # A thread makes a whole batch; twice as many in memory keep it busy while the first is awaited.
    threads = min(16, max(1, _cores() // max(1, workers)))
    dataset = dataset.to_iter_dataset(
        grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    )
    if workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain reads its flags; outside app.run none are parsed.
        dataset = dataset.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers), worker_init_fn=_end_with_parent
        )
    return _iterate(dataset)


def _iterate(dataset: grain.IterDataset) -> Batches:
    iterator = iter(dataset)
    try:
        yield from iterator
    finally:
        iterator.close()


def _cores() -> int:
    # Not os.cpu_count(), which counts cores that this process may not use.
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only.
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _end_with_parent(worker_index: int, worker_count: int) -> None:
    """Ends this worker when its parent is killed; Grain would leave it waiting for ever."""
    del worker_index, worker_count

    def watch():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
