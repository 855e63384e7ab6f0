"""Label tables: how the label maps of a data set store its classes."""

import dataclasses
import functools
import importlib.resources
import itertools
import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from resnest_jax.errors import InputError

IGNORED = 255  # label of pixels that do not count
MOST_CLASSES = 255  # labels are uint8
MOST_VALUE = 65535  # label maps have 8 or 16 bits
_UNKNOWN = -1


@dataclasses.dataclass(frozen=True)
class LabelTable:
    """The values in label maps and the label, 0 to classes - 1 or ``IGNORED``, of each.

    Attributes:
      names: of the classes, in the order of their labels.
      values: the value of each class in label maps, in this order too.
      ignored: the values of pixels that do not count.
      padding: label of pixels outside the picture, ``IGNORED`` or, in VOC, 0 (the background).
      palette: colour of each class, RGB from 0 to 255.
    """

    names: tuple[str, ...]
    values: tuple[int, ...]
    ignored: tuple[int, ...] = (0,)
    padding: int = IGNORED
    palette: tuple[tuple[int, int, int], ...] = ()

    def __post_init__(self):
        if not self.palette:
            object.__setattr__(self, "palette", tuple(map(voc_color, self.values)))

    def labels(self, label_map: np.ndarray, path: str) -> np.ndarray:
        """Return the labels of a label map.

        Args:
          label_map: integers (H, W), as they are stored.
          path: the file, for the error.

        Returns:
          uint8 (H, W).

        Raises:
          InputError: if a value is neither of a class nor ignored; names file, value and range.
        """
        wrong = (label_map < 0) | (label_map > MOST_VALUE)
        if not wrong.any():
            labels = self._lookup[label_map]
            wrong = labels == _UNKNOWN
            if not wrong.any():
                return labels.astype(np.uint8)
        raise InputError(
            f"the label map {path} has the value {label_map[wrong][0]} in {wrong.sum()} of its "
            f"{wrong.size} pixels; {self.allowed}"
        )

    @property
    def allowed(self) -> str:
        """The values that a label map may have, in words."""
        text = f"expected {_ranges(self.values)} for the {len(self.names)} classes"
        return f"{text} or {_ranges(self.ignored)} for ignored pixels" if self.ignored else text

    @functools.cached_property
    def _lookup(self) -> np.ndarray:
        """Labels by value, int16, ``_UNKNOWN`` elsewhere."""
        lookup = np.full(MOST_VALUE + 1, _UNKNOWN, np.int16)
        lookup[list(self.ignored)] = IGNORED
        lookup[list(self.values)] = np.arange(len(self.values))
        return lookup


@functools.cache
def published_table(name: str) -> LabelTable:
    """Return the table of a published data set: a key of ``label_tables.json``."""
    fields = _published()[name]
    palette = tuple(map(tuple, fields.pop("palette", ())))
    lists = {key: tuple(fields.pop(key)) for key in ("names", "values", "ignored")}
    return LabelTable(**lists, palette=palette, **fields)


def published_names() -> tuple[str, ...]:
    """Return the names that ``published_table`` takes."""
    return tuple(_published())


def _published() -> dict[str, dict[str, Any]]:
    file = importlib.resources.files("resnest_jax.data") / "label_tables.json"
    return json.loads(file.read_text())


def voc_color(value: int) -> tuple[int, int, int]:
    """Return the colour of a value in VOC's palette, whose neighbours differ most."""
    red, green, blue = (
        sum((value >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(8))
        for channel in range(3)
    )
    return red, green, blue


def _ranges(values: Iterable[int]) -> str:
    """Write integers as ranges: ``0, 7 to 9``."""
    found: list[Sequence[int]] = []
    # Neighbours have the same difference to their position.
    for _, run in itertools.groupby(enumerate(sorted(values)), lambda pair: pair[1] - pair[0]):
        found.append([value for _, value in run])
    return ", ".join(str(r[0]) if len(r) == 1 else f"{r[0]} to {r[-1]}" for r in found)
