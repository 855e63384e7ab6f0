"""The order of records: those of step n depend only on the seed and n."""

from typing import Any, NamedTuple, cast

import grain
import numpy as np

from resnest_jax.errors import InputError


def shuffled(
    dataset: grain.MapDataset, seed: int, repeats: int = 1, labels: np.ndarray | None = None
) -> grain.MapDataset:
    """Return the data set in the endless order of training.

    Each epoch is a new permutation of the records.

    Args:
      seed: 0..2**32-1.
      repeats: copies of each record in a row, each augmented differently (arXiv 1902.05509).
      labels: classes of the records (N,). If given, every C records are one of each of the C
        classes, in random order, and the records of each class are permuted separately.

    Raises:
      InputError: if an argument is out of range.
    """
    _check_seed(seed)
    if repeats < 1:
        raise InputError(f"augment.repeats must be at least 1; got {repeats}")
    if labels is None:
        dataset = dataset.seed(seed).shuffle().repeat()
    else:
        dataset = _Balanced(dataset.seed(seed).repeat(), labels, seed)
    return _Repeated(dataset, repeats) if repeats > 1 else dataset


def spread(dataset: grain.MapDataset, repeats: int, batch_size: int) -> grain.MapDataset:
    """Reorder each batch so that the copies of a record lie about B / repeats apart.

    Devices have consecutive parts of a batch: with at least ``repeats`` devices each copy is on
    another one, as in arXiv 1902.05509. The order does not depend on the devices.
    """
    return _Spread(dataset, repeats, batch_size)


def grouped(
    dataset: grain.MapDataset, groups: np.ndarray, seed: int, batch_size: int
) -> grain.MapDataset:
    """Return the data set in an endless order whose batches have records of one group each.

    Each epoch is a new permutation of the records. Every group fills batches of its own, over the
    ends of epochs too, which come in the order in which they are full: no record is left out, and
    those of step n depend only on the arguments and n. So do detectron2's batches by aspect.

    Args:
      groups: group of each record, int (N,).
      seed: 0..2**32-1.

    Raises:
      InputError: if the seed is out of range.
    """
    _check_seed(seed)
    return _Grouped(dataset.seed(seed).repeat(), groups, seed, batch_size)


def _check_seed(seed: int) -> None:
    if not 0 <= seed < 2**32:
        raise InputError(f"seed must be in 0..2**32-1; got {seed}")


class _Epoch(NamedTuple):
    """The order of an epoch.

    Attributes:
      records: those of each group, in their order.
      batches: group and number of the batches that become full, in the order in which they do.
    """

    records: list[np.ndarray]
    batches: list[tuple[int, int]]


class _Grouped(grain.MapDataset):
    """Batches of one group, in the order in which they are full."""

    def __init__(self, parent: grain.MapDataset, groups: np.ndarray, seed: int, batch_size: int):
        super().__init__(parent)
        _, self._groups, sizes = np.unique(groups, return_inverse=True, return_counts=True)
        self._sizes = sizes.tolist()
        self._seed, self._batch_size = seed, batch_size
        self._epochs: dict[int, _Epoch] = {}

    def __len__(self) -> int:
        return len(self._parent)

    def __getitem__(self, index: int) -> Any:
        step, position = divmod(index, self._batch_size)
        epoch = step * self._batch_size // len(self._groups)
        while self._full(epoch + 1) <= step:
            epoch += 1
        group, number = self._epoch(epoch).batches[step - self._full(epoch)]
        epoch, rank = divmod(number * self._batch_size + position, self._sizes[group])
        return self._parent[int(self._epoch(epoch).records[group][rank])]

    def _full(self, epochs: int) -> int:
        """Return how many batches are full after a number of epochs."""
        return sum(epochs * size // self._batch_size for size in self._sizes)

    def _epoch(self, epoch: int) -> _Epoch:
        if found := self._epochs.get(epoch):
            return found
        records = np.random.default_rng((self._seed, epoch)).permutation(len(self._groups))
        groups = self._groups[records]
        full: list[tuple[int, int, int]] = []
        for group, size in enumerate(self._sizes):
            first, end = (e * size // self._batch_size for e in (epoch, epoch + 1))
            positions = np.flatnonzero(groups == group)
            for number in range(first, end):
                last = (number + 1) * self._batch_size - 1 - epoch * size
                full.append((int(positions[last]), group, number))
        if len(self._epochs) > 8:
            self._epochs.clear()
        made = _Epoch(
            [records[groups == group] for group in range(len(self._sizes))],
            [(group, number) for _, group, number in sorted(full)],
        )
        self._epochs[epoch] = made
        return made


class _Balanced(grain.MapDataset):
    """Rounds of one record per class."""

    def __init__(self, parent: grain.MapDataset, labels: np.ndarray, seed: int):
        super().__init__(parent)
        members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
        # One seed for each, since classes may have the same number of records.
        seeds = np.random.default_rng(seed).integers(2**32, size=len(members) + 1).tolist()
        self._classes = _endless(np.arange(len(members)), seeds.pop())
        self._members = [_endless(*pair) for pair in zip(members, seeds, strict=True)]

    def __len__(self) -> int:
        return len(self._parent)

    def __getitem__(self, index: int) -> Any:
        members = self._members[_at(self._classes, index)]
        return self._parent[_at(members, index // len(self._members))]


def _endless(values: np.ndarray, seed: int) -> grain.MapDataset[int]:
    order = grain.MapDataset.range(len(values)).seed(seed).shuffle().repeat()
    return order.map(values.item)


def _at(dataset: grain.MapDataset[int], index: int) -> int:
    return cast(int, dataset[index])  # None is Grain's mark of filtered elements; none are


class _Spread(grain.MapDataset):
    """The elements of each batch: first copies of all records, then second ones, and so on."""

    def __init__(self, parent: grain.MapDataset, repeats: int, batch_size: int):
        super().__init__(parent)
        positions = np.arange(batch_size)
        self._positions = np.argsort(positions % repeats, kind="stable")

    def __len__(self) -> int:
        return len(self._parent)

    def __getitem__(self, index: int) -> Any:
        step, position = divmod(index, len(self._positions))
        return self._parent[step * len(self._positions) + int(self._positions[position])]


class _Repeated(grain.MapDataset):
    """Each element several times in a row."""

    def __init__(self, parent: grain.MapDataset, times: int):
        super().__init__(parent)
        self._times = times

    def __len__(self) -> int:
        return len(self._parent)

    def __getitem__(self, index: int) -> Any:
        return self._parent[index // self._times]
