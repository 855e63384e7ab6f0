"""Local paths; files written atomically, and damaged ones kept."""

import contextlib
import errno
import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from resnest_jax.errors import InputError


def local_path(field: str, value: str | os.PathLike) -> Path:
    """Return the path that a flag, argument or config key names.

    Raises:
      InputError: if it is empty or an address such as gs://...
    """
    text = os.fspath(value)
    if not text.strip() or "://" in text:
        raise InputError(f"{field} must be a local path; got {text!r}")
    return Path(text).expanduser()


def check_output(field: str, path: Path) -> None:
    """Check that a file can be written, before the work that makes its content.

    Raises:
      InputError: if it is a directory, or its own directory is not there or not writable.
    """
    problem = None
    if path.is_dir():
        problem = "it is a directory"
    elif not path.parent.is_dir():
        problem = f"there is no directory {path.parent.absolute()}"
    elif not os.access(path if path.exists() else path.parent, os.W_OK):
        problem = "permission denied"
    if problem:
        raise InputError(f"{field} {path} cannot be written: {problem}")


def read_file(what: str, path: str | os.PathLike) -> bytes:
    """Read a file, which is ``what`` to the user.

    Raises:
      InputError: if it cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"cannot read the {what} {path}: {error.strerror}") from error


def write_atomic(path: Path, content: bytes | bytearray | memoryview) -> None:
    """Write atomically; on error the old file stays.

    Raises:
      OSError: if the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file atomically.

    Raises:
      OSError: if the file cannot be written.
    """
    write_atomic(path, (json.dumps(value, indent=2) + "\n").encode())


@contextlib.contextmanager
def writing(field: str, path: str | os.PathLike) -> Iterator[None]:
    """Turn an OSError in the block into an InputError that names the field and the path.

    Args:
      field: the argument, flag or config key that holds the path.
      path: the file or directory that the block writes.

    Raises:
      InputError: if the block raises OSError.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{field} {path} cannot be written: {reason}") from error


def make_folder(field: str, path: Path) -> None:
    """Create a directory, and check that files can be written into it.

    Raises:
      InputError: if not; the message names the field, the path and the reason.
    """
    with writing(field, path):
        if path.exists() and not path.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "it is a file; move it away")
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):  # on a read-only file system this fails
            pass


def put_aside(path: Path, why: str) -> Path:
    """Rename a file or directory to ``NAME.WHY-TIME``; return the new path.

    Raises:
      OSError: if it cannot be renamed.
    """
    name = f"{path.name}.{why}-{time.strftime('%Y%m%d-%H%M%S')}"
    return path.rename(path.with_name(name))
