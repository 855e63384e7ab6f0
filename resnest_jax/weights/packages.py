"""Import optional packages."""

import importlib
from types import ModuleType

from resnest_jax.errors import InputError


def import_package(module: str, requirement: str) -> ModuleType:
    """Import an optional package.

    Raises:
      InputError: if it is not installed; the message says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        raise InputError(f"this needs {module}: pip install '{requirement}'") from None
