"""Multi-process set-up and preemption."""

import contextlib
import itertools
import os
import signal
import socket
import sys
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
# Of cluster managers, with the number of processes first.
SLURM = ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_JOB_ID")
OPEN_MPI = ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK")
TPU_HOSTS = "TPU_WORKER_HOSTNAMES"
WAIT = 300.0  # seconds for the other processes


def start() -> None:
    """Join the other processes of the run, if any; call it before all other use of JAX.

    They are found from SLURM's or Open MPI's environment, or from the three variables above
    (``JAX_COORDINATOR_ADDRESS=HOST:PORT``); with only ``JAX_COORDINATOR_ADDRESS=auto`` JAX finds
    them, for example on a TPU slice. Local CPU devices communicate through gloo.

    The process ends after ``WAIT`` seconds if one of the others does not come.

    Raises:
      InputError: if only some of the three variables are set, a variable is invalid, or the host is
        unknown.
    """
    given = _variables(ADDRESS, COUNT, INDEX)
    if given == {ADDRESS: "auto"}:
        del os.environ[ADDRESS]  # JAX would take it for an address
        _join(given)
    elif given:
        _join(given, *_processes(given))
    elif _in_cluster():
        _join(_variables(*SLURM, *OPEN_MPI, TPU_HOSTS))


def _variables(*names: str) -> dict[str, str]:
    return {name: os.environ[name] for name in names if name in os.environ}


def _processes(given: dict[str, str]) -> tuple[str, int, int]:
    """Return address, number of processes and index of this one from the three variables."""
    match [given.get(ADDRESS, "").rpartition(":"), given.get(COUNT, ""), given.get(INDEX, "")]:
        case [(host, ":", port), count, index] if (
            host
            and all(text.isdecimal() for text in (port, count, index))
            and 0 < int(port) < 2**16
            and int(index) < int(count)
        ):
            _check_host(host, given[ADDRESS])
            return given[ADDRESS], int(count), int(index)
    raise InputError(
        f"set all three of {ADDRESS}=HOST:PORT, {COUNT}=N and {INDEX}=I with I from 0 to N - 1, or "
        f"only {ADDRESS}=auto; got {_listed(given)}"
    )


def _check_host(host: str, address: str) -> None:
    try:
        socket.getaddrinfo(host.strip("[]"), None)
    except OSError as error:
        raise InputError(
            f"{ADDRESS}={address}: the host {host} is unknown ({error.strerror}); give the host of "
            f"the process with {INDEX}=0"
        ) from None


def _in_cluster() -> bool:
    """Return whether a cluster manager started several processes of this command."""
    counts = _variables(SLURM[0], OPEN_MPI[0])
    for name, count in counts.items():
        if not count.isdecimal():
            raise InputError(f"{name} must be a number of processes; got {count!r}; unset it")
    hosts = os.environ.get(TPU_HOSTS, "").split(",")
    return any(int(count) > 1 for count in counts.values()) or len(hosts) > 1


def _join(
    variables: dict[str, str],
    address: str | None = None,
    count: int | None = None,
    index: int | None = None,
) -> None:
    """Start JAX with the other processes; end this one if they do not come."""
    print(f"waiting for the other processes of the run ({_listed(variables)})", flush=True)
    # A thread, because JAX ends the process itself, with a trace of its library's frames.
    timer = threading.Timer(WAIT, _give_up, [variables])
    timer.daemon = True
    timer.start()
    try:
        timeout = 2 * round(WAIT)
        jax.distributed.initialize(address, count, index, initialization_timeout=timeout)
    except (ValueError, TypeError, RuntimeError, OSError) as error:
        raise InputError(
            f"the processes of the run cannot be found ({error}) from {_listed(variables)}; start "
            f"them with srun or mpirun, or set {ADDRESS}=HOST:PORT, {COUNT}=N and {INDEX}=I"
        ) from error
    finally:
        timer.cancel()


def _give_up(variables: dict[str, str]) -> None:
    print(
        f"error: the other processes of the run did not come within {WAIT:.0f} seconds "
        f"({_listed(variables)}); start all of them, and check that they can reach each other",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)


def _listed(variables: dict[str, str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in variables.items())


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
