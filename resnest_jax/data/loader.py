"""Make this host's batches of elements, in chunks, by threads and worker processes."""

import dataclasses
import itertools
import multiprocessing
import os
import threading
from collections.abc import Generator
from typing import Any, Protocol, TypeVar

import cv2
import grain
import numpy as np
from absl import flags

from resnest_jax.data.images import Images
from resnest_jax.errors import InputError

T = TypeVar("T")
Element = dict[str, np.ndarray]  # output of a transform
HostBatches = Generator[dict[str, np.ndarray], None, None]

# Largest number of images that one thread makes at a time: thousands per thread would fill the
# memory.
MAX_CHUNK = 128


class EvalTransform(Protocol):
    """A transform, like ``grain.transforms.Map``, to elements of one shape."""

    def map(self, element: dict[str, Any]) -> Element: ...


@dataclasses.dataclass(frozen=True)
class HostShard:
    """One host's part of each batch; all parts in host order form the global batch.

    Attributes:
      batch_size: images of the global batch, a multiple of ``count``.
      index, count: this host, and the number of hosts.

    Raises:
      InputError: if the number of hosts does not divide the batch.
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
        """Images of this host per batch."""
        return self.batch_size // self.count

    @property
    def chunk(self) -> int:
        """Images that one thread makes at a time: a divisor of ``size``."""
        return max(n for n in range(1, min(self.size, MAX_CHUNK) + 1) if self.size % n == 0)

    def elements(self, number: int) -> range:
        """Return the global indices of the elements of this host's chunk ``number``."""
        step, part = divmod(number * self.chunk, self.size)
        start = step * self.batch_size + self.index * self.size + part
        return range(start, start + self.chunk)

    def step_elements(self, step: int) -> list[int]:
        """Return the global indices of the elements of this host's part of a batch."""
        start = step * self.batch_size + self.index * self.size
        return list(range(start, start + self.size))


def train_batches(
    elements: grain.MapDataset, shard: HostShard, *, start_step: int = 0, workers: int = 0
) -> HostBatches:
    """Yield this host's part of the training batches endlessly, starting at a step.

    Batch n depends only on the elements and n, not on ``start_step`` or ``workers``.

    Args:
      elements: endless; random transforms draw by index, so that they do not depend on the host.
      workers: worker processes, at most one per core; 0 loads in threads of this process. With
        workers, the main program must be importable without side effects (an
        ``if __name__ == "__main__"`` guard).

    Returns:
      A generator of dicts of stacked elements, B = shard.size. ``close()`` stops the workers.

    Raises:
      InputError: if ``workers`` is negative; while iterating, if an element raises it.
    """
    return _read(_Chunks(elements, shard, start_step), shard, workers)


def eval_batches(
    images: Images, transform: EvalTransform, shard: HostShard, *, workers: int = 0
) -> HostBatches:
    """Yield this host's part of the evaluation batches: every image once over all hosts.

    The images of a batch are of one group, in the order of the groups. The last batch of each is
    padded with zeros, so that one compiled step per group is enough, and every host has the same
    number of batches.

    Returns:
      A generator as in ``train_batches``, whose batches also hold ``valid``, bool (B,): False for
      padding and for an image that cannot be read.

    Raises:
      InputError: as in ``train_batches``.
    """
    slots = grain.MapDataset.source(eval_slots(images.groups, shard.batch_size))
    elements = slots.map(_ValidElement(images, transform))
    return _read(_Chunks(elements, shard), shard, workers)


def eval_slots(groups: np.ndarray, batch_size: int) -> list[int]:
    """Return the record of each element of the evaluation batches, group after group.

    A negative number is padding: ``~i``, of the group of record i.

    Args:
      groups: group of each record, int (N,).
    """
    slots: list[int] = []
    for group in np.unique(groups):
        members = np.flatnonzero(groups == group).tolist()
        slots += members + [~members[0]] * (-len(members) % batch_size)
    return slots


@dataclasses.dataclass(frozen=True)
class _ValidElement(grain.transforms.Map):
    """Slot -> element with ``valid``; zeros if there is no image."""

    images: Images
    transform: EvalTransform
    paddings: dict[int, Element] = dataclasses.field(default_factory=dict)  # by group

    def map(self, element: int) -> Element:
        found = self.images.read_or_skip(element) if element >= 0 else None
        index = element if element >= 0 else ~element
        made = self.transform.map(found) if found else self._padding(index)
        return {**made, "valid": np.array(found is not None)}

    def _padding(self, index: int) -> Element:
        group = int(self.images.groups[index])
        if group not in self.paddings:
            made = self.transform.map(self.images[index])
            self.paddings[group] = {name: np.zeros_like(value) for name, value in made.items()}
        return self.paddings[group]


def element_at(dataset: grain.MapDataset[T], index: int) -> T:
    """Return an element of a data set without a filter."""
    element = dataset[index]
    if element is None:  # Grain's mark of a filtered element
        raise IndexError(index)
    return element


class _Chunks(grain.MapDataset[dict[str, np.ndarray]]):
    """This host's chunks of the batches, each stacked, starting at a step."""

    def __init__(self, parent: grain.MapDataset[Element], shard: HostShard, start_step: int = 0):
        super().__init__(parent)
        self._shard = shard
        self._first = start_step * shard.size // shard.chunk

    def __len__(self) -> int:
        per_batch = self._shard.size // self._shard.chunk
        return len(self._parent) // self._shard.batch_size * per_batch

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        indices = self._shard.elements(self._first + index)
        elements = [element_at(self._parent, i) for i in indices]
        return {name: np.stack([e[name] for e in elements]) for name in elements[0]}


def _read(chunks: _Chunks, shard: HostShard, workers: int) -> HostBatches:
    """Read batches of chunks in threads, or in worker processes that have threads.

    Marks absl's flags as parsed if they are not, because Grain's workers read them.
    """
    if workers < 0:
        raise InputError(f"loader.workers must not be negative; got {workers}")
    workers = min(workers, _cores())  # more would only take long to start
    # Twice as many chunks as threads in memory, to keep the threads busy while the first is slow.
    threads = min(16, max(1, _cores() // max(1, workers)))
    dataset = chunks.to_iter_dataset(
        grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    )
    if workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        dataset = dataset.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers), worker_init_fn=_start_worker
        )
    else:
        _one_opencv_thread()
    return _iterate(dataset, shard.size // shard.chunk)


def _iterate(dataset: grain.IterDataset, chunks: int) -> HostBatches:
    iterator = iter(dataset)
    try:
        while batch := list(itertools.islice(iterator, chunks)):
            if chunks == 1:
                yield batch[0]
            else:
                yield {name: np.concatenate([c[name] for c in batch]) for name in batch[0]}
    finally:
        iterator.close()


def _cores() -> int:
    # Not os.cpu_count(), which counts cores that this process may not use.
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _one_opencv_thread() -> None:
    """Limit OpenCV to one thread: Grain already processes one image per core."""
    cv2.setNumThreads(1)


def _start_worker(worker_index: int, worker_count: int) -> None:
    """Prepare a worker: it exits when its parent is killed; with Grain alone it would hang."""
    del worker_index, worker_count
    _one_opencv_thread()
    parent = multiprocessing.parent_process()

    def watch():
        if parent is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
