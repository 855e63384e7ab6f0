"""PyTorch's programs in their own process, whose memory and threads do not disturb ours."""

import atexit
import contextlib
import importlib
import multiprocessing
import weakref
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import jax

from experiments.benchmark.ours import Program
from resnest_jax.errors import InputError


def programs(make: str, module: str = "pytorch", **settings) -> dict[Any, Program]:
    """Make programs with a function of a module here, on JAX's kind of device.

    A call runs in the other process and waits for its result. Without PyTorch, timm or the model
    in timm, a note is printed and there are no programs.

    Raises:
      InputError: if the function does.
    """
    settings["device"] = "cpu" if jax.default_backend() == "cpu" else "cuda"
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, module, make, settings), daemon=True)
    process.start()
    atexit.register(_end, weakref.ref(here), process)  # without its programs it ends earlier
    there.close()  # else the end of the process goes unnoticed
    found = here.recv() or "timm has no model of this architecture"
    if isinstance(found, InputError):
        raise found
    if isinstance(found, str):
        print(f"PyTorch is skipped: {found}")
        return {}
    return {name: made._replace(call=partial(_call, here, name)) for name, made in found.items()}


def _call(connection: Connection, name: Any) -> Any:
    connection.send(name)
    return connection.recv()


def _end(connection: weakref.ref[Connection], process) -> None:
    """Close the connection; give the process time to end its own processes."""
    if here := connection():
        here.close()
    process.join(10)


def _serve(connection: Connection, module: str, make: str, settings: dict) -> None:
    try:
        make_programs = getattr(importlib.import_module(f"experiments.benchmark.{module}"), make)
    except ImportError as error:
        connection.send(str(error))
        return
    try:
        made = make_programs(**settings)
    except InputError as error:
        connection.send(error)
        return
    connection.send({name: program._replace(call=None) for name, program in made.items()})
    with contextlib.suppress(EOFError):  # the asking process has ended
        while True:
            connection.send(made[connection.recv()].call())
