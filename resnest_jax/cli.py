"""What the commands share: how they start, and how they say what was wrong."""

import ctypes
import importlib.metadata
import importlib.util
import os
import runpy
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict

from resnest_jax.config import RENAMED
from resnest_jax.errors import DivergenceError, InputError, PreemptedError, StorageError

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h


def run(main: Callable[[list[str]], int | None], *, arguments: bool = False) -> None:
    """Run a command to its exit code; what goes wrong becomes one line on stderr, exit code 1.

    A run that was told to stop exits with 143, as SIGTERM itself would have it.

    What is compiled is kept in the user's cache directory for the next time.

    ``arguments``: whether it takes any besides its options.
    """
    _keep_compiled()
    _keep_memory()
    try:
        app.run(main, flags_parser=partial(_parse, arguments=arguments))
    except PreemptedError as error:
        print(f"stopped: {error}", file=sys.stderr, flush=True)
        sys.exit(128 + signal.SIGTERM)
    except (InputError, DivergenceError, StorageError) as error:
        fail(error)
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1 or "RESOURCE_EXHAUSTED" in str(error):
            raise
        fail(
            f"another process of the run has failed or was killed; the same command goes on from "
            f"the last checkpoint ({error})"
        )


def _keep_compiled() -> None:
    """Give JAX's compilation cache a directory, unless the user did or it cannot be written."""
    if jax.config.jax_compilation_cache_dir:
        return
    folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "resnest_jax"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # a read-only file system; a user without a home
        return
    if os.access(folder, os.W_OK):
        jax.config.update("jax_compilation_cache_dir", str(folder))


def _keep_memory() -> None:
    """Have freed memory kept for the next step, if JAX has nothing but the CPU.

    XLA asks for all the memory of a program at every call of it. New from the system, its pages are
    zeroed one by one each time: a quarter of a training step of ResNeSt-50 and more.
    """
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    if sys.platform != "linux" or plugins or importlib.util.find_spec("libtpu"):
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # glibc
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)  # never give back
        # What other threads than the main one allocate comes from the system nevertheless.
        jax.config.update("jax_cpu_enable_async_dispatch", False)


def fail(error: object) -> None:
    """Print one line and leave."""
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
    if jax.distributed.is_initialized():
        os._exit(1)  # at once: leaving in order waits for processes that may be gone
    sys.exit(1)


def _parse(argv: list[str], arguments: bool) -> list[str]:
    """Parse flags with Absl; report what is wrong with a config or its overrides in one line."""
    try:
        rest = flags.FLAGS(argv)
        overrides = {}
        if "config" in flags.FLAGS and flags.FLAGS["config"].value is not None:
            list(flags.FLAGS["config"].value)  # a file that did not load says so only now
            overrides = flags.FLAGS["config"].override_values
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        fail(_wrong_override(argv) or error)
    for key, value in overrides.items():
        if isinstance(value, ConfigDict):  # it would replace the section, the recipe's values too
            fail(_is_section(f"config.{key}", value))
    if not flags.FLAGS["verbosity"].present:
        # Orbax tells of every file that it writes; it and TFDS warn of what is normal.
        logging.set_verbosity(logging.ERROR)
    if len(rest) > 1 and not arguments:
        fail(f"unexpected argument {rest[1]!r}; options are written --name=value")
    return rest


def _wrong_override(argv: list[str]) -> str | None:
    """Message for the first override of a key that does not exist or is a section, or None."""
    files = [arg.split("=", 1)[1] for arg in argv if arg.startswith("--config=")]
    path, _, argument = files[-1].partition(":") if files else ("", "", "")
    if not Path(path).is_file():
        return None
    try:
        config = runpy.run_path(path)["get_config"](*[argument] if argument else [])
    except Exception as error:  # a config file may raise anything
        return f"--config={files[-1]}: {_plain(error)}"
    for name in (arg.lstrip("-").split("=")[0] for arg in argv):
        section, where = config, "config"
        for key in name.split(".")[1:] if name.startswith("config.") else ():
            if not hasattr(section, "keys"):
                return f"{name}: {where} is {section!r} and has no keys"
            if key not in section:
                return _no_key(name, where, key, section)
            section, where = section[key], f"{where}.{key}"
        if name.startswith("config.") and hasattr(section, "keys"):
            return _is_section(name, section)
    return None


def _no_key(name: str, where: str, key: str, section: ConfigDict) -> str:
    new = RENAMED.get(name.removeprefix("config."))
    hint = f"it is now config.{new}" if new else f"its keys are {', '.join(section)}"
    return f"{name}: {where} has no key {key!r}; {hint}"


def _is_section(name: str, section: ConfigDict) -> str:
    key = next(iter(section), "KEY")
    return f"{name} is a section; set its keys one by one, such as --{name}.{key}=VALUE"


def _plain(error: BaseException) -> str:
    """The message of an exception, that of a locked ConfigDict without all its values."""
    while error.args and isinstance(error.args[0], Exception):
        error = error.args[0]
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    first, locked, rest = text.partition(" and cannot be added since the config is locked.")
    hint = rest[rest.find("Did you mean") :] if "Did you mean" in rest else ""
    return f"{first}. {hint}".strip() if locked else text
