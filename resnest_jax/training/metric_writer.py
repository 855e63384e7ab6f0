"""Write the metrics of a run: ``metrics.jsonl``, TensorBoard events, progress lines."""

import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import tensorboardX.summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2
from tqdm import tqdm

from resnest_jax.files import put_aside, write_atomic
from resnest_jax.training.distributed import is_main
from resnest_jax.training.tracker import Tracker

METRICS = "metrics.jsonl"

Line = dict[str, Any]  # numbers by name; "step" is an integer


def read_metrics(workdir: Path) -> list[Line]:
    """Read the lines of ``metrics.jsonl``, without those that cannot be read."""
    return _read(workdir / METRICS)[0]


def _read(path: Path) -> tuple[list[Line], int]:
    """Return the lines, and how many cannot be read, without an unfinished last one, of a kill."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return [], 0
    except OSError:  # a directory, no permission
        return [], 1
    lines = [_parse(text) for text in content.split(b"\n")[:-1]]
    whole = [line for line in lines if line is not None]
    return whole, len(lines) - len(whole)


def _parse(text: bytes) -> Line | None:
    try:
        line = json.loads(text.decode())
    except (ValueError, RecursionError):
        return None
    numbers = isinstance(line, dict) and all(type(value) in (int, float) for value in line.values())
    return line if numbers and type(line.get("step")) is int else None


_events: Any = event_pb2  # its classes are made at import


class MetricsWriter:
    """Context manager that writes metrics by step to all sinks, in the main process.

    ``metrics.jsonl`` holds only values that config and seed determine, so that two runs can be
    compared line by line; rates go to the other sinks and the console.
    """

    def __init__(
        self,
        workdir: Path,
        start_step: int,
        stored: list[Line] | None = None,
        tracker: Callable[[Path], Tracker] | None = None,
    ):
        """Open the sinks; drop entries after ``start_step``, which will be written again.

        Args:
          stored: all lines up to ``start_step``, from the checkpoint; None: those of the file.
          tracker: see ``Run``.
        """
        self._tracker = tracker(workdir) if tracker and is_main() else None
        self._sinks: tuple[_File, EventsWriter] | None = None
        if is_main():
            file = _File(workdir / METRICS, start_step, stored)
            self._sinks = file, _open_events(workdir, start_step + 1)

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._tracker:
            self._tracker.finish(exit_code=int(kind is not None))
        if self._sinks:
            file, events = self._sinks
            with contextlib.suppress(*() if kind is None else (OSError,)):  # that error is raised
                if kind is None:
                    file.mend()
                file.close()
                events.close()

    @property
    def lines(self) -> list[Line]:
        """A copy of all lines so far; empty in other processes than the main one."""
        return list(self._sinks[0].lines) if self._sinks else []

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Write one line to ``metrics.jsonl`` and the same values to the other sinks."""
        if self._sinks:
            self._sinks[0].append({"step": step, **metrics})
        self.write_others(step, metrics)

    def write_others(self, step: int, metrics: dict[str, float]) -> None:
        """Write values that differ from run to run, such as rates: not to ``metrics.jsonl``."""
        if self._tracker:
            self._tracker.log({"step": step, **metrics})
        if self._sinks:
            _, events = self._sinks
            for name, value in metrics.items():
                summary = tensorboardX.summary.scalar(name, value)
                events.write_event(_events.Event(wall_time=time.time(), step=step, summary=summary))
            events.flush()


def _open_events(workdir: Path, purge_step: int) -> EventsWriter:
    """Open a new file of TensorBoard events, which hides old ones from a step on.

    Not by ``SummaryWriter``: the thread that it writes in dies on a full disk, and then the run
    would wait for it without end.
    """
    events = EventsWriter(str(workdir / "events"))
    start = _events.SessionLog(status=_events.SessionLog.START)
    events.write_event(_events.Event(step=purge_step, session_log=start))
    return events


class _File:
    """``metrics.jsonl`` and its lines, which are written again if the file is damaged."""

    def __init__(self, path: Path, start_step: int, stored: list[Line] | None):
        self._path = path
        lines, unreadable = _read(path)
        found = [line for line in lines if line["step"] <= start_step]
        self.lines = found if stored is None else list(stored)
        # As text, because NaN differs from itself.
        if unreadable or list(map(json.dumps, found)) != list(map(json.dumps, self.lines)):
            self._report(found, unreadable)
        self._write()

    def _report(self, found: list[Line], unreadable: int) -> None:
        """Keep the damaged file; say what is wrong with it."""
        texts = set(map(json.dumps, found))
        lost = [line["step"] for line in self.lines if json.dumps(line) not in texts]
        problems = [f"{unreadable} line(s) cannot be read"] if unreadable else []
        if lost:
            steps = f"steps {lost[0]} to {lost[-1]}"
            problems.append(f"{len(lost)} line(s) of {steps} were lost and come from checkpoints")
        problems = problems or ["it has lines that the checkpoint does not have"]
        print(f"{self._path}: {'; '.join(problems)}{self._keep()}", flush=True)

    def _keep(self) -> str:
        if not self._path.exists():
            return ""
        return f"; the damaged file is kept as {put_aside(self._path, 'damaged').name}"

    def _write(self) -> None:
        content = "".join(json.dumps(line) + "\n" for line in self.lines).encode()
        write_atomic(self._path, content)
        self._file: BinaryIO = self._path.open("ab")
        self._size = len(content)

    def append(self, line: Line) -> None:
        self.mend()
        content = (json.dumps(line) + "\n").encode()
        self._file.write(content)
        self._file.flush()
        self.lines.append(line)
        self._size += len(content)

    def mend(self) -> None:
        """Write the file again if another program has deleted or changed it."""
        if self._path.is_file() and self._path.stat().st_size == self._size:
            return
        self._file.close()
        kept = self._keep()
        self._write()
        print(f"{self._path} was deleted or changed and is written again{kept}", flush=True)

    def close(self) -> None:
        self._file.close()


class ProgressMeter:
    """Progress lines on the console: step, ETA and given values."""

    def __init__(self, start_step: int, total_steps: int):
        self._start, self._total = start_step, total_steps
        self._begun = time.perf_counter()

    def restart(self, step: int) -> None:
        """Count the time from this step on."""
        self._start, self._begun = step, time.perf_counter()

    def show(self, step: int, **values: str) -> None:
        """Print one line, in the main process."""
        if not is_main():
            return
        line = tqdm.format_meter(
            step,
            self._total,
            time.perf_counter() - self._begun,
            initial=self._start,
            bar_format="step {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]",
            postfix=", ".join(f"{name} {value}" for name, value in values.items()),
        )
        print(line, flush=True)
