"""Random access to decoded records; skip unreadable ones."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from resnest_jax.data.decode import decode_image
from resnest_jax.data.sources.records import Records
from resnest_jax.errors import InputError


class Images:
    """Random access to decoded records, for example ``{"image": (H, W, 3), "label", "key"}``.

    An unreadable record is replaced by the next readable one of its group; the choice depends only
    on the index. Its key is written to the log once, one key per line, by the worker that finds it.

    Args:
      records: the encoded images.
      max_unreadable: largest number of different unreadable records, in this process of the run
        and its workers.
      log: file of their keys; None: any unreadable record is an error.
      decode: function from a record to the input of a transform.

    Attributes:
      groups: group of each record, int (N,); those of a group have elements of equal shapes.

    Raises:
      InputError: if ``max_unreadable`` is negative.
    """

    def __init__(
        self,
        records: Records,
        max_unreadable: int = 0,
        log: Path | None = None,
        decode: Callable[[dict[str, Any]], dict[str, Any]] = decode_image,
        groups: np.ndarray | None = None,
    ):
        if max_unreadable < 0:
            raise InputError(f"loader.max_unreadable must not be negative; got {max_unreadable}")
        self._records, self._decode, self._log = records, decode, log
        self._max_unreadable = max_unreadable
        self.groups = np.zeros(len(records), np.int32) if groups is None else groups

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        for offset in range(len(self)):
            other = (index + offset) % len(self)
            same = self.groups[other] == self.groups[index]
            if same and (found := self.read_or_skip(other)):
                return found
        count = np.sum(self.groups == self.groups[index])
        raise InputError(f"none of the {count} images that could replace it can be read")

    def read_or_skip(self, index: int) -> dict[str, Any] | None:
        """Return the decoded record, or None if it cannot be read.

        Raises:
          InputError: if there are too many unreadable records.
        """
        try:
            return self._decode(self._records[index])
        except (InputError, OSError) as error:
            if not self._max_unreadable or self._log is None:
                raise
            self._note(self._log, self._records.key(index), error)
            return None

    def _note(self, log: Path, key: str, error: Exception) -> None:
        """Add the key to the log if it is new; raise InputError if there are too many."""
        # Names of files may be any bytes.
        known = set(os.fsdecode(log.read_bytes()).splitlines()) if log.exists() else set()
        if key not in known:
            # One small write in append mode: lines of several workers do not mix.
            descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(descriptor, os.fsencode(f"{key}\n"))
            finally:
                os.close(descriptor)
        count = len(known | {key})
        if count > self._max_unreadable:
            raise InputError(
                f"{count} images cannot be read, more than loader.max_unreadable "
                f"{self._max_unreadable}: {log} lists them (delete it to restart the count); "
                f"the last: {error}"
            )
