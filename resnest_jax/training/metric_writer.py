"""Write the metrics of a run: ``metrics.jsonl``, TensorBoard events, progress lines."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

import tensorboardX
from tqdm import tqdm

from resnest_jax.files import write_atomic
from resnest_jax.training.distributed import is_main
from resnest_jax.training.tracker import Tracker

METRICS = "metrics.jsonl"


def read_metrics(workdir: Path) -> list[dict]:
    """Read the lines of ``metrics.jsonl``; drop an incomplete last line, left by a kill."""
    path = workdir / METRICS
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


class MetricsWriter:
    """Context manager that writes metrics by step to all sinks, in the main process.

    ``metrics.jsonl`` holds only values that config and seed determine, so that two runs can be
    compared line by line; rates go to the other sinks and the console.
    """

    def __init__(
        self, workdir: Path, start_step: int, tracker: Callable[[Path], Tracker] | None = None
    ):
        """Open the sinks; drop entries after ``start_step``, which will be written again.

        Args:
          tracker: see ``Run``.
        """
        self._tracker = tracker(workdir) if tracker and is_main() else None
        self._sinks: tuple[TextIO, tensorboardX.SummaryWriter] | None = None
        if not is_main():
            return
        kept = [line for line in read_metrics(workdir) if line["step"] <= start_step]
        text = "".join(json.dumps(line) + "\n" for line in kept)
        write_atomic(workdir / METRICS, text.encode())
        events = tensorboardX.SummaryWriter(str(workdir), purge_step=start_step + 1)
        self._sinks = (workdir / METRICS).open("a"), events

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._tracker:
            self._tracker.finish(exit_code=int(kind is not None))
        for sink in self._sinks or ():
            sink.close()

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Write one line to ``metrics.jsonl`` and the same values to the other sinks."""
        if self._sinks:
            file, _ = self._sinks
            file.write(json.dumps({"step": step, **metrics}) + "\n")
            file.flush()
        self.write_others(step, metrics)

    def write_others(self, step: int, metrics: dict[str, float]) -> None:
        """Write values that differ from run to run, such as rates: not to ``metrics.jsonl``."""
        if self._tracker:
            self._tracker.log({"step": step, **metrics})
        if self._sinks:
            _, events = self._sinks
            for name, value in metrics.items():
                events.add_scalar(name, value, step)


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
