"""Checksums of the files of a checkpoint."""

import hashlib
import json
from pathlib import Path

from resnest_jax.files import write_json

FILE = "checksums.json"
# Orbax writes these once more when it renames a checkpoint; nothing is read from them.
CHANGING = ("_CHECKPOINT_METADATA", "commit_success.txt")


def write_checksums(folder: Path) -> None:
    """Write the checksum of every file below a folder, but ``CHANGING``, into ``FILE`` there.

    Raises:
      OSError: if a file cannot be read or written.
    """
    write_json(folder / FILE, {name: _digest(folder / name) for name in _files(folder)})


def find_damage(folder: Path) -> str | None:
    """Return what is wrong with the files of a folder, or None.

    A folder without checksums, of a version that did not write them, passes.
    """
    try:
        expected = json.loads((folder / FILE).read_text())
        if not isinstance(expected, dict):
            return f"{FILE} is damaged"
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return f"{FILE} is damaged"
    for name, digest in expected.items():
        try:
            if _digest(folder / name) != digest:
                return f"{name} is damaged"
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
    return None


def _files(folder: Path) -> list[str]:
    return sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and path.name not in (FILE, *CHANGING)
    )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()[:32]
