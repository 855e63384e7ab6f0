"""From records to batches: shuffled without end for training, each record once for evaluation."""

import dataclasses
import itertools
import multiprocessing
import os
import threading
from collections.abc import Generator

import grain
import numpy as np
from absl import flags

from resnest_jax.data.images import Images
from resnest_jax.data.sources.records import Records
from resnest_jax.errors import InputError

Batches = Generator[dict[str, np.ndarray], None, None]

# A batch is made in pieces of at most so many images, each by one thread: thousands of images in
# the hands of every thread would fill the memory.
MAX_PIECE = 128


@dataclasses.dataclass(frozen=True)
class Share:
    """This host's part of each batch, so that all parts in order are what one host would see.

    Attributes:
      batch_size: the global batch, a multiple of ``count``.
      index, count: this host, and the number of hosts.
    """

    batch_size: int
    index: int = 0
    count: int = 1

    def __post_init__(self):
        if self.batch_size % self.count:
            raise InputError(
                f"batch_size {self.batch_size} must be a multiple of the {self.count} processes"
            )

    @property
    def size(self) -> int:
        """Images of this host in a batch."""
        return self.batch_size // self.count

    @property
    def piece(self) -> int:
        """Images that are made at a time: a divisor of ``size``."""
        return max(n for n in range(1, min(self.size, MAX_PIECE) + 1) if self.size % n == 0)

    def elements(self, number: int) -> range:
        """Indices, over all hosts, of the elements of this host's piece of that number."""
        step, part = divmod(number * self.piece, self.size)
        start = step * self.batch_size + self.index * self.size + part
        return range(start, start + self.piece)


def train_batches(
    images: Images,
    transform: grain.transforms.RandomMap,
    share: Share,
    *,
    seed: int,
    start_step: int = 0,
    repeats: int = 1,
    workers: int = 0,
) -> Batches:
    """Yields this host's share of the training batches, for ever, from `start_step` on.

    Batch n depends on the seed and on n alone, random augmentation included: not on the step that
    the run started from, nor on `workers`. The hosts' shares, put together in order, are the batch
    that one host alone would see. Each epoch is a new permutation; a batch may span two epochs.

    Args:
      images: The training images.
      transform: Makes one element of an image and a numpy generator.
      share: This host's.
      seed: 0..2**32-1.
      start_step: The index of the first batch.
      repeats: How often each image comes in a row, changed in another way each time (arXiv
        1902.05509); an epoch then has that many times fewer images.
      workers: Worker processes; 0 loads in threads of this process. With workers, the main
        program must be importable without side effects (an `if __name__ == "__main__"` guard).

    Returns:
      A generator of dicts of stacked elements, B = share.size: with TrainTransform "image" uint8
      (B, S, S, 3) and "label" int32 (B,). Its `close()` ends the workers.

    Raises:
      InputError: `seed`, `repeats` or `workers` out of range; while iterating, whatever
        `transform` or `images` raise as InputError.
    """
    # Before the hosts' shares: the generator of an element then follows from its global index.
    elements = _order(grain.MapDataset.source(images), seed, repeats).random_map(transform)
    return _read(_Pieces(elements, share, start_step), share, workers)


def train_keys(
    records: Records, share: Share, *, seed: int, step: int, repeats: int = 1
) -> list[str]:
    """What finds the records of this host's share of one training batch."""
    indices = _order(grain.MapDataset.range(len(records)), seed, repeats)
    numbers = range(step * share.size // share.piece, (step + 1) * share.size // share.piece)
    return [records.key(indices[i]) for number in numbers for i in share.elements(number)]


def _order(dataset: grain.MapDataset, seed: int, repeats: int) -> grain.MapDataset:
    """The endless order in which training sees a data set."""
    if not 0 <= seed < 2**32:
        raise InputError(f"seed must be in 0..2**32-1, got {seed}")
    if repeats < 1:
        raise InputError(f"augment.repeats must be at least 1; got {repeats}")
    dataset = dataset.seed(seed).shuffle().repeat()
    return _Repeated(dataset, repeats) if repeats > 1 else dataset


class _Repeated(grain.MapDataset):
    """Each element several times in a row."""

    def __init__(self, parent: grain.MapDataset, times: int):
        super().__init__(parent)
        self._times = times

    def __len__(self) -> int:
        return len(self._parent)

    def __getitem__(self, index):
        return self._parent[index // self._times]


class _Pieces(grain.MapDataset):
    """This host's pieces of the batches from a step on, each stacked."""

    def __init__(self, parent: grain.MapDataset, share: Share, start_step: int = 0):
        super().__init__(parent)
        self._share = share
        self._first = start_step * share.size // share.piece

    def __len__(self) -> int:
        return len(self._parent) // self._share.batch_size * (self._share.size // self._share.piece)

    def __getitem__(self, index):
        elements = [self._parent[i] for i in self._share.elements(self._first + index)]
        return {name: np.stack([e[name] for e in elements]) for name in elements[0]}


def eval_batches(
    images: Images, transform: grain.transforms.Map, share: Share, *, workers: int = 0
) -> Batches:
    """Yields this host's share of the evaluation batches: every image once over all hosts.

    The last batch is filled up with zeros and every host has the same number of batches, so a
    step compiled for one shape serves all. The arguments are those of `train_batches`.

    Returns:
      A generator as of `train_batches`, whose batches also hold "valid" bool (B,): False where the
      element is filling, or an image that cannot be read.

    Raises:
      InputError: As `train_batches`.
    """
    padded = -(-len(images) // share.batch_size) * share.batch_size
    elements = grain.MapDataset.range(padded).map(_ValidElement(images, transform))
    return _read(_Pieces(elements, share), share, workers)


@dataclasses.dataclass(frozen=True)
class _ValidElement(grain.transforms.Map):
    """Index -> element with ``valid``; another image's, zeroed, where there is none."""

    images: Images
    transform: grain.transforms.Map

    def map(self, element):
        found = self.images.read(element) if element < len(self.images) else None
        made = self.transform.map(found or self.images[0])
        if not found:
            made = {name: np.zeros_like(value) for name, value in made.items()}
        return {**made, "valid": np.bool_(found is not None)}


def _read(pieces: _Pieces, share: Share, workers: int) -> Batches:
    """Iterates over batches, made of pieces in threads or in worker processes of threads each."""
    if workers < 0:
        raise InputError(f"loader.workers must not be negative; got {workers}")
    # A thread makes a whole piece; twice as many in memory keep it busy while the first is awaited.
    threads = min(16, max(1, _cores() // max(1, workers)))
    dataset = pieces.to_iter_dataset(
        grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    )
    if workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain reads its flags; outside app.run none are parsed.
        dataset = dataset.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers), worker_init_fn=_end_with_parent
        )
    return _iterate(dataset, share.size // share.piece)


def _iterate(dataset: grain.IterDataset, pieces: int) -> Batches:
    iterator = iter(dataset)
    try:
        while batch := list(itertools.islice(iterator, pieces)):
            if pieces == 1:
                yield batch[0]
            else:
                yield {name: np.concatenate([p[name] for p in batch]) for name in batch[0]}
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
