"""Check images and label maps before a run: sizes from headers, values of some label maps."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from resnest_jax.data.decode import upright_size
from resnest_jax.data.label_maps import check_size
from resnest_jax.data.label_tables import LabelTable
from resnest_jax.data.sources.mask_pairs import MAT, Pairs, read_label_map, some
from resnest_jax.errors import InputError, one_line

SAMPLE = 50  # label maps per split whose values are checked at start
THREADS = 8  # hide the latency of disks


def readable_pairs(pairs: Pairs, max_unreadable: int, notes: list[str]) -> Pairs:
    """Compare the sizes of images and label maps, from their headers.

    Returns:
      The pairs whose headers can be read; ``notes`` gets a line about the others.

    Raises:
      InputError: if sizes differ, or if more pairs are unreadable than ``max_unreadable``.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        problems = list(pool.map(_problem, pairs))
    differing = [str(problem) for problem in problems if isinstance(problem, InputError)]
    if differing:
        raise InputError(f"{len(differing)} label maps of another size: {some(differing)}")
    unreadable = [problem for problem in problems if isinstance(problem, str)]
    if unreadable:
        notes.append(f"{len(unreadable)} unreadable files: {some(unreadable)}")
        if len(unreadable) > max_unreadable:
            raise InputError(notes[-1])
    return [pair for pair, problem in zip(pairs, problems, strict=True) if problem is None]


def check_values(pairs: Pairs, table: LabelTable) -> None:
    """Check label maps, evenly spaced over the pairs of a split.

    Raises:
      InputError: if a value is not in the table, a file is broken or a size differs.
    """
    chosen = np.linspace(0, len(pairs) - 1, min(SAMPLE, len(pairs)))
    for index in chosen.round().astype(int):
        image, path = pairs[index]
        labels = table.labels(read_label_map(path), path)
        check_size((image, path), upright_size(image), labels.shape[::-1])


def _problem(pair: tuple[str, str]) -> InputError | str | None:
    """Return the error about the sizes of a pair, or the file whose header is unreadable."""
    path = ""
    sizes = []
    try:
        for path in pair:
            if Path(path).suffix != MAT:  # has no header; compared when it is decoded
                sizes.append(upright_size(path))
    except Exception as error:  # Pillow raises many kinds for broken files
        reason = one_line(error)
        return reason if path in reason else f"{path} ({reason})"
    try:
        check_size(pair, sizes[0], sizes[-1])
    except InputError as error:
        return error
    return None
