"""The order of records: those of step n depend only on the seed and n."""

from typing import Any

import grain

from resnest_jax.errors import InputError


def shuffled(dataset: grain.MapDataset, seed: int, repeats: int = 1) -> grain.MapDataset:
    """Return the data set in the endless order of training: each epoch is a new permutation.

    Args:
      seed: 0..2**32-1.
      repeats: copies of each record in a row, each augmented differently (arXiv 1902.05509).

    Raises:
      InputError: if an argument is out of range.
    """
    if not 0 <= seed < 2**32:
        raise InputError(f"seed must be in 0..2**32-1; got {seed}")
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

    def __getitem__(self, index: int) -> Any:
        return self._parent[index // self._times]
