"""PyTorch in a process of its own, whose memory and threads do not get in the way of ours."""

import atexit
import contextlib
import multiprocessing
from functools import partial
from multiprocessing.connection import Connection

import jax

from experiments.benchmark.ours import Program


def programs(make: str, **settings) -> dict[str, Program]:
    """What a function of pytorch.py makes on JAX's kind of device.

    A call is done over there and waited for. With a note, none where PyTorch or timm is not
    installed, or timm lacks the model.
    """
    settings["device"] = "cpu" if jax.default_backend() == "cpu" else "cuda"
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, make, settings), daemon=True)
    process.start()
    atexit.register(_end, here, process)
    there.close()  # so that the other's end is noticed
    found = here.recv() or "timm has no model of this architecture"
    if isinstance(found, str):
        print(f"without PyTorch's rows: {found}")
        return {}
    return {name: told._replace(call=partial(_call, here, name)) for name, told in found.items()}


def _call(connection: Connection, name: str) -> None:
    connection.send(name)
    connection.recv()


def _end(connection: Connection, process) -> None:
    """Give it the time to clean up after its own processes."""
    connection.close()
    process.join(10)


def _serve(connection: Connection, make: str, settings: dict) -> None:
    try:
        from experiments.benchmark import pytorch
    except ImportError as error:
        connection.send(str(error))
        return
    made = getattr(pytorch, make)(**settings)
    connection.send({name: program._replace(call=None) for name, program in made.items()})
    with contextlib.suppress(EOFError):  # the process that asks has ended
        while True:
            made[connection.recv()].call()
            connection.send(None)
