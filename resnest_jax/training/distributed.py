"""Multi-process set-up and preemption."""

import contextlib
import itertools
import os
import signal
import threading
from collections.abc import Iterator

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from resnest_jax.errors import InputError
from resnest_jax.training.task import PyTree

# Set by hand in every process; not needed where a cluster manager sets its own variables.
ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"


def start() -> None:
    """Join the other processes of the run, if any; call it before all other use of JAX.

    They are found from SLURM's or Open MPI's environment, or from the three variables above
    (``JAX_COORDINATOR_ADDRESS=HOST:PORT``); with only ``JAX_COORDINATOR_ADDRESS=auto`` JAX finds
    them, for example on a TPU slice. Local CPU devices communicate through gloo.

    Raises:
      InputError: if only some of the three variables are set, or a number is invalid.
    """
    given = {name: os.environ[name] for name in (ADDRESS, COUNT, INDEX) if name in os.environ}
    if given == {ADDRESS: "auto"}:
        del os.environ[ADDRESS]  # JAX would take it for an address
        jax.distributed.initialize()
    elif given:
        if len(given) < 3 or not (given[COUNT].isdecimal() and given[INDEX].isdecimal()):
            raise InputError(
                f"set all three of {ADDRESS}=HOST:PORT, {COUNT}=N and {INDEX}=I, or only "
                f"{ADDRESS}=auto; got {given}"
            )
        jax.distributed.initialize(given[ADDRESS], int(given[COUNT]), int(given[INDEX]))
    elif _in_cluster():
        jax.distributed.initialize()


def _in_cluster() -> bool:
    """Return whether a cluster manager started several processes of this command."""
    tasks = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
    hosts = os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")
    return any(int(os.environ.get(name, 1)) > 1 for name in tasks) or len(hosts) > 1


def is_main() -> bool:
    """Return whether this process is the main one, which prints and writes shared files."""
    return jax.process_index() == 0


@contextlib.contextmanager
def main_first() -> Iterator[None]:
    """Run the block in the main process first; the others wait, for a day at most."""
    if not is_main():
        _meet()
    try:
        yield
    finally:
        if is_main():
            _meet()


def local(tree: PyTree) -> PyTree:
    """Return this process's part of arrays (B, ...) sharded over the mesh, as NumPy arrays."""

    def join(array: jax.Array) -> np.ndarray:
        shards = sorted(array.addressable_shards, key=lambda shard: shard.index[0].start or 0)
        return np.concatenate(jax.device_get([shard.data for shard in shards]))

    return jax.tree.map(join, tree)


def sum_over_processes(count: int) -> int:
    """The sum of a number of each process, in every process."""
    if jax.process_count() == 1:
        return count
    return int(multihost_utils.process_allgather(np.int32(count)).sum())


def agree(text: str | None) -> str | None:
    """The text of the first process that has one, in every process."""
    texts = gather_bytes((text or "").encode())
    return next((found.decode() for found in texts if found), None)


def gather_bytes(data: bytes) -> list[bytes]:
    """Return the bytes of every process, in every process, by process index."""
    if jax.process_count() == 1:
        return [data]
    lengths = multihost_utils.process_allgather(np.int32(len(data)))
    padded = np.zeros(int(lengths.max()), np.uint8)
    padded[: len(data)] = np.frombuffer(data, np.uint8)
    rows = multihost_utils.process_allgather(padded)
    return [row[:length].tobytes() for row, length in zip(rows, lengths, strict=True)]


_meetings = itertools.count()


def _meet() -> None:
    """Wait for all processes through the coordinator, as there may be no devices yet."""
    everyone = set(range(jax.process_count()))
    name = f"main_first_{next(_meetings)}"
    ocp.multihost.sync_global_processes(name, timeout=24 * 3600, processes=everyone)


class Preemption:
    """Notices SIGTERM and Control-C; a context manager.

    All processes agree on the step after which to stop. A second Control-C interrupts at once.
    """

    def __enter__(self) -> "Preemption":
        self.signal: signal.Signals | None = None
        self._before = {}
        # With several processes JAX has a handler of its own for SIGTERM and tells the others.
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._notice)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _notice(self, number: int, _: object) -> None:
        if self.signal == number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)

    def reached(self, step: int) -> bool:
        """Return whether to stop after this step; every process must call it after every step."""
        if jax.process_count() == 1:
            return self.signal is not None
        return multihost_utils.reached_preemption_sync_point(step)
