"""Exceptions whose message is one line for the user; commands print it as it is."""

import importlib
import signal
from types import ModuleType


class InputError(ValueError):
    """Bad input: the message names the field, the value and what is allowed."""


class DivergenceError(RuntimeError):
    """A loss or gradient is not finite; the message names step and records."""


class StorageError(RuntimeError):
    """Something cannot be written, for example on a full disk; existing files are intact."""


class PreemptedError(RuntimeError):
    """The run got a signal to stop and saved a checkpoint."""

    def __init__(self, message: str, received: signal.Signals = signal.SIGTERM):
        super().__init__(message)
        self.received = received


def one_line(error: object) -> str:
    """Return the message of an error as one line."""
    return " ".join(str(error).split()) or type(error).__name__


def import_package(module: str, requirement: str) -> ModuleType:
    """Import an optional package.

    Raises:
      InputError: if it is not installed; the message says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        raise InputError(f"this needs {module}: pip install '{requirement}'") from None
