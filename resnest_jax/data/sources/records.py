"""Records by index, and data sets of records."""

import dataclasses
from typing import Any, Protocol


class Records(Protocol):
    """Random access to records: encoded images, labels, and the ``key`` that identifies each.

    For classification ``{"image": bytes, "label": int, "key": str}``; with label maps see
    ``masks.MaskRecords``.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...

    def key(self, index: int) -> str:
        """Return the key of a record, without reading the record."""
        ...


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Training and evaluation records, and the class name of each label.

    ``notes`` are lines for the user, for example what was left out.
    """

    train: Records
    eval: Records
    class_names: tuple[str, ...]
    notes: tuple[str, ...] = ()
