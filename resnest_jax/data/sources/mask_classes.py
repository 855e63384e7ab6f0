"""The classes of a user's own label maps."""

import collections
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from resnest_jax.data.label_tables import IGNORED, MOST_CLASSES, MOST_VALUE, LabelTable
from resnest_jax.data.sources.mask_checks import THREADS
from resnest_jax.data.sources.mask_pairs import Pairs, read_label_map, some
from resnest_jax.errors import InputError, one_line

FILE = "classes.txt"
_NUMBERED = re.compile(r"(\d{1,5})[\s:,;]+(\S.*)")
_COLORED = re.compile(r"(\S.*?)" + 3 * r"[\s:,;]+(\d{1,3})")

Palette = tuple[tuple[int, int, int], ...]


def read_table(root: Path, train: Pairs, notes: list[str]) -> LabelTable:
    """Return the table of a folder of label maps.

    ``classes.txt`` has a class on each line: ``NAME``, of the values 1, 2, ... in the order of the
    lines, or on all lines ``VALUE NAME``; all lines may end in a colour, ``R G B``. Values 0 and
    255 are ignored unless they are those of a class. Without the file the classes are the values
    from 1 to the largest in training, and ``notes`` gets a line about it. Colours that are not
    given are those of the palette of the label maps, if they have one, or else VOC's.

    Raises:
      InputError: if the file cannot be read, a name or value is there twice, a number is too
        large, or there are no classes.
    """
    path = root / FILE
    if path.exists():
        values, names, palette = _parse(path)
    else:
        values, palette = _values(root, train, notes), ()
        names = [str(value) for value in values]
    ignored = tuple(value for value in (0, IGNORED) if value not in values)
    palette = palette or _stored_palette(train, values)
    return LabelTable(tuple(names), tuple(values), ignored, palette=palette)


def _parse(path: Path) -> tuple[list[int], list[str], Palette]:
    """Return values, names and, if there are any, colours."""
    try:
        lines = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {one_line(error)}") from error
    names = [line.strip() for line in lines]
    if not all(names) or not 1 <= len(names) <= MOST_CLASSES:
        raise InputError(
            f"{path} has {len(names)} lines, {names.count('')} of them empty; expected one class "
            f"on each and at most {MOST_CLASSES}"
        )
    values = list(range(1, len(names) + 1))
    numbered = [match for name in names if (match := _NUMBERED.fullmatch(name))]
    if len(numbered) == len(names):
        values = [int(match[1]) for match in numbered]
        names = [match[2] for match in numbered]
    names, palette = _split_colors(path, names)
    for what, entries in (("names", names), ("values", values)):
        repeated = [
            str(entry) for entry, count in collections.Counter(entries).items() if count > 1
        ]
        if repeated:
            raise InputError(f"{path} has {what} more than once: {some(repeated)}")
    if max(values) > MOST_VALUE:
        raise InputError(f"{path} has the value {max(values)}; expected 0 to {MOST_VALUE}")
    return values, names, palette


def _split_colors(path: Path, names: list[str]) -> tuple[list[str], Palette]:
    """Return names and colours of lines that all end in three numbers; else no colours."""
    colored = [match for name in names if (match := _COLORED.fullmatch(name))]
    if len(colored) < len(names):
        return names, ()
    palette = tuple((int(match[2]), int(match[3]), int(match[4])) for match in colored)
    if wrong := [color for color in palette if max(color) > 255]:
        raise InputError(f"{path} has the colour {wrong[0]}; expected three numbers from 0 to 255")
    return [match[1] for match in colored], palette


def _stored_palette(train: Pairs, values: list[int]) -> Palette:
    """Return the colours in the first label map, if it has a palette of colours that differ."""
    try:
        with Image.open(train[0][1]) as image:
            stored = np.reshape(image.getpalette() or (), (-1, 3))
    except Exception:  # Pillow raises many kinds for broken files, which are named later
        return ()
    table = np.zeros((MOST_VALUE + 1, 3), int)
    table[: len(stored)] = stored
    colors = table[values]
    useful = len(np.unique(colors, axis=0)) == len(values) and np.ptp(colors, 1).any()
    return tuple((int(r), int(g), int(b)) for r, g, b in colors) if useful else ()


def _values(root: Path, train: Pairs, notes: list[str]) -> list[int]:
    """Return the values from 1 to the largest in the label maps."""
    with ThreadPoolExecutor(THREADS) as pool:
        maps = pool.map(lambda pair: np.unique(read_label_map(pair[1])).tolist(), train)
        found = {value for values in maps for value in values} - {0, IGNORED}
    if not found or not 1 <= max(found) <= MOST_CLASSES:
        what = f"the largest value is {max(found)}" if found else f"no value but 0 and {IGNORED}"
        raise InputError(
            f"{root}: {what} in the training label maps; write {FILE} with 'VALUE NAME' on each "
            "line, for each class"
        )
    values = list(range(1, max(found) + 1))
    notes.append(f"{root} has no {FILE}: {len(values)} classes, the values of training label maps")
    if missing := [str(value) for value in values if value not in found]:
        notes.append(f"{root}: no training label map has the values {some(missing)}")
    return values
