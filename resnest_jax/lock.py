"""One writer per directory, and directories that are written once."""

import contextlib
import json
import os
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import filelock

from resnest_jax.errors import InputError
from resnest_jax.files import write_json

LOCK = ".lock"  # held by the kernel, on one host or on a file system that shares such locks
WRITER = ".writer.json"  # the owner, for other hosts: touched every HEARTBEAT seconds
HEARTBEAT = 10.0
LOST = 60.0  # seconds without a heartbeat after which an owner on another host is gone


@contextlib.contextmanager
def one_writer(directory: Path) -> Iterator[None]:
    """Refuse a second writer of the directory while the block runs.

    A lock whose owner was killed is free at once on the same host, and after ``LOST`` seconds on
    another host of a shared file system.

    Raises:
      InputError: if another process writes there; the message names its host and process.
    """
    lock = filelock.FileLock(directory / LOCK, timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise InputError(_refusal(directory, _read(directory))) from None
    stop = threading.Event()
    try:
        owner = _read(directory)
        if owner.get("host") != socket.gethostname() and _age(directory) < LOST:
            raise InputError(_refusal(directory, owner))
        write_json(directory / WRITER, {"host": socket.gethostname(), "process": os.getpid()})
        thread = threading.Thread(target=_beat, args=(directory / WRITER, stop), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            with contextlib.suppress(OSError):
                (directory / WRITER).unlink()
    finally:
        lock.release()


def write_once(directory: Path, write: Callable[[Path], None]) -> None:
    """Write a directory if it is not there; another process that writes it is waited for.

    A directory that is there is complete: ``write`` gets another one, which is renamed at the end.
    What a killed process left is written again.

    Raises:
      OSError: if it cannot be written.
    """
    if directory.is_dir():
        return
    directory.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(directory.with_name(f".{directory.name}{LOCK}")):
        if directory.is_dir():  # the other process has written it
            return
        partial = directory.with_name(f"{directory.name}.incomplete")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        write(partial)
        partial.rename(directory)


def _refusal(directory: Path, owner: dict[str, Any]) -> str:
    who = f"process {owner.get('process', '?')} on host {owner.get('host', '?')}"
    return (
        f"workdir {directory} is in use by {who}; stop that run or use another workdir (if it is "
        f"gone, its lock is free after {LOST:.0f} seconds)"
    )


def _read(directory: Path) -> dict[str, Any]:
    """The owner that the directory names; empty without one."""
    try:
        owner = json.loads((directory / WRITER).read_text())
    except (OSError, ValueError):
        return {}
    return owner if isinstance(owner, dict) else {}


def _age(directory: Path) -> float:
    """Seconds since the last heartbeat, by the clock of the file system."""
    probe = directory / f"{WRITER}.{os.getpid()}"
    try:
        probe.touch()
        return probe.stat().st_mtime - (directory / WRITER).stat().st_mtime
    except FileNotFoundError:
        return LOST
    finally:
        probe.unlink(missing_ok=True)


def _beat(path: Path, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT):
        with contextlib.suppress(OSError):  # deleted, or the disk is away: the run notices itself
            os.utime(path)
