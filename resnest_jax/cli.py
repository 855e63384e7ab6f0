"""Start-up and error reporting of the commands."""

import contextlib
import ctypes
import importlib.metadata
import importlib.util
import io
import logging as standard_logging
import os
import runpy
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict

from resnest_jax.config import RENAMED
from resnest_jax.errors import (
    DivergenceError,
    InputError,
    PreemptedError,
    StorageError,
    one_line,
)

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h


def run(
    main: Callable[[list[str]], int | None],
    command: flags.FlagValues,
    *,
    arguments: bool = False,
) -> None:
    """Run a command; print known errors as one line on stderr, with exit code 1.

    After SIGTERM the exit code is 143, after Control-C 130. After an error the process ends at
    once, whatever threads there are. The user's cache directory keeps compiled programs.

    Args:
      main: the command; it gets the arguments that are not flags, and returns the exit code.
      command: the flags of the command; absl's own are added to them.
      arguments: the command takes arguments besides flags.
    """
    set_up_jax()
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files may be any bytes
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        app.run(main, flags_parser=partial(_parse, command=command, arguments=arguments))
    except PreemptedError as error:
        code = 128 + error.received
        if jax.distributed.is_initialized():  # the others stop too: a normal exit waits for them
            print(f"stopped: {error}", file=sys.stderr, flush=True)
            sys.exit(code)
        _leave(f"stopped: {error}", code)
    except KeyboardInterrupt:
        _leave("interrupted", 128 + signal.SIGINT)
    except (InputError, DivergenceError, StorageError) as error:
        fail(error)
    except BrokenPipeError:  # the reader of the output has ended, as head does
        os._exit(128 + signal.SIGPIPE)
    except Exception as error:
        lost = isinstance(error, jax.errors.JaxRuntimeError) and jax.process_count() > 1
        if lost and "RESOURCE_EXHAUSTED" not in str(error):
            fail(
                "another process of the run failed or was killed; run the same command again to "
                f"resume from the last checkpoint ({error})"
            )
        if isinstance(error, RuntimeError | AssertionError) and (problem := _no_backend()):
            fail(problem)
        _leave("".join(traceback.format_exception(error)), 1)


def _no_backend() -> str | None:
    """Return the message if JAX finds no device of the platforms that are asked for, or None."""
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        asked = jax.config.jax_platforms  # pyright: ignore[reportAttributeAccessIssue]
        return f"JAX_PLATFORMS={asked}: JAX has no such device ({error}); unset it, or set cpu"
    return None


def set_up_jax() -> None:
    """Keep compiled programs and freed memory; call it before JAX starts its devices."""
    _keep_compiled()
    _keep_memory()


def _keep_compiled() -> None:
    """Set a default compilation cache directory, if it can be written."""
    settings: Any = jax.config  # its attributes have no types
    if settings.jax_compilation_cache_dir:
        return
    folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "resnest_jax"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # a read-only file system, no home directory
        return
    if os.access(folder, os.W_OK):
        jax.config.update("jax_compilation_cache_dir", str(folder))


def _keep_memory() -> None:
    """Keep freed memory for the next step, if JAX has only the CPU.

    XLA allocates all memory of a program at each call. The system zeroes new pages one by one,
    which takes a quarter of a training step of ResNeSt-50 or more.
    """
    settings: Any = jax.config
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    others = plugins or importlib.util.find_spec("libtpu")
    if sys.platform != "linux" or (others and settings.jax_platforms != "cpu"):
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # glibc
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)  # never give back
        # Memory of other threads is not kept.
        jax.config.update("jax_cpu_enable_async_dispatch", False)


def fail(error: object) -> NoReturn:
    """Print the error as one line and exit with code 1."""
    _leave(f"error: {one_line(error)}", 1)


def _leave(message: str, code: int) -> NoReturn:
    """Print the message on stderr and end the process.

    A normal exit waits for threads of libraries, which may never end, and for other processes of
    the run, which may be gone.
    """
    print(message, file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # a closed pipe
            stream.flush()
    os._exit(code)


def _silence_libraries() -> None:
    """Let only this module print errors.

    Orbax raises what goes wrong while it writes, but also prints it, as do the event loop and the
    callbacks that it uses, up to a thousand lines on a full disk.
    """
    logging.set_verbosity(logging.FATAL)
    standard_logging.getLogger("asyncio").setLevel(standard_logging.CRITICAL)
    sys.unraisablehook = lambda _: None  # of callbacks


def _parse(argv: list[str], command: flags.FlagValues, arguments: bool) -> list[str]:
    """Parse flags; report errors in one line. Return the program and the other arguments."""
    _join(command)
    # Orbax logs every file that it writes; it and TFDS warn in normal operation.
    logging.set_verbosity(logging.ERROR)
    overrides: dict[str, Any] = {}
    try:
        rest = command(argv)
        if "config" in command:
            overrides = _overrides(command["config"])
    except Exception as error:  # a config file may raise anything
        fail(_wrong_config(argv) or error)
    flags.FLAGS.mark_as_parsed()  # absl.app, absl.logging and Grain read theirs
    for key, value in overrides.items():
        if isinstance(value, ConfigDict):  # it would drop the recipe's other values
            fail(_is_section(f"config.{key}", value))
    if not command["verbosity"].present:
        _silence_libraries()
    if len(rest) > 1 and not arguments:
        fail(f"unexpected argument {rest[1]!r}; options are written --name=value")
    return rest


def _overrides(config: Any) -> dict[str, Any]:
    """Return the overrides of a config flag; raise the error of a file that did not load."""
    if config.value is None:
        return {}
    list(config.value)  # a file that failed to load raises here
    return config.override_values


def _join(command: flags.FlagValues) -> None:
    """Add absl's own flags to the command's, and the command's to those that ``--help`` prints."""
    command.append_flag_values(flags.FLAGS)
    for defined in command.flags_by_module_dict().values():  # without the added ones
        for flag in defined:
            flags.FLAGS[flag.name] = flag
            # Also those of ``arguments``: help is of the flags of this module.
            flags.FLAGS.register_flag_by_module(sys.argv[0], flag)


def _wrong_config(argv: list[str]) -> str | None:
    """Return the message for a config file that does not load or its first wrong override."""
    given = _config_file(argv)
    path, _, argument = given.partition(":")
    if not Path(path).is_file():
        return None
    try:
        get_config = runpy.run_path(path).get("get_config")
        if not callable(get_config):
            return f"--config={given}: the file has no function get_config()"
        config = get_config(*[argument] if argument else [])
    except Exception as error:
        return f"--config={given}: {_plain(error)}"
    if not isinstance(config, ConfigDict | Mapping):
        return f"--config={given}: get_config() must return a ConfigDict; it returns {config!r}"
    return _wrong_override(argv, config)


def _config_file(argv: list[str]) -> str:
    """Return the value of the last --config flag, written with = or without; "" if none."""
    found = ""
    for arg, following in zip(argv, [*argv[1:], ""], strict=True):
        name, equals, value = arg.partition("=")
        if name.lstrip("-") == "config" and name.startswith("-"):
            found = value if equals else following
    return found


def _wrong_override(argv: list[str], config: ConfigDict | Mapping) -> str | None:
    """Return the message for the first override of an unknown key or a section, or None."""
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


def _no_key(name: str, where: str, key: str, section: ConfigDict | Mapping) -> str:
    new = RENAMED.get(name.removeprefix("config."))
    hint = f"it is now config.{new}" if new else f"its keys are {', '.join(section)}"
    return f"{name}: {where} has no key {key!r}; {hint}"


def _is_section(name: str, section: ConfigDict | Mapping) -> str:
    key = next(iter(section), "KEY")
    return f"{name} is a section; set its keys one by one, such as --{name}.{key}=VALUE"


def _plain(error: BaseException) -> str:
    """Return the message of an exception; that of a locked ConfigDict without its values."""
    while error.args and isinstance(error.args[0], Exception):
        error = error.args[0]
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    first, locked, rest = text.partition(" and cannot be added since the config is locked.")
    hint = rest[rest.find("Did you mean") :] if "Did you mean" in rest else ""
    return f"{first}. {hint}".strip() if locked else text or type(error).__name__
