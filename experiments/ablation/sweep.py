"""Make the jobs of a sweep, run those without a result, and read the outcomes."""

import concurrent.futures
import itertools
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict
from tqdm import tqdm

from experiments.ablation.grid import Cell, config_hash
from experiments.ablation.jobs import FAILURE, JOB, RESULT, Launch
from resnest_jax.files import write_json, writing

METRIC = "eval_top1"
Row = dict[str, Any]


class Job(NamedTuple):
    """A cell with a seed, its folder and its config."""

    cell: str
    seed: int
    hash: str
    folder: Path
    config: dict

    @property
    def done(self) -> bool:
        return (self.folder / RESULT).exists()


def make_jobs(
    cells: list[Cell], configs: dict[str, ConfigDict], seeds: int, workdir: Path
) -> list[Job]:
    """Return a job per cell and seed; all cells of a seed come before the next seed.

    The folder's name includes a hash of the config: runs with other settings stay, unused.
    """
    jobs = []
    for offset, cell in itertools.product(range(seeds), cells):
        config = configs[cell.name].copy_and_resolve_references()
        config.seed += offset
        digest = config_hash(config)
        folder = workdir / "runs" / f"{cell.folder}-{digest}" / f"seed_{config.seed}"
        jobs.append(Job(cell.name, config.seed, digest, folder, config.to_dict()))
    return jobs


def run_jobs(jobs: list[Job], launch: Launch, workers: int) -> None:
    """Run the jobs without a result, ``workers`` at a time; a failure does not stop the others.

    Raises:
      InputError: if the directory cannot be written.
    """
    progress = _Progress(jobs)
    waiting = [job for job in jobs if not job.done]
    for job in waiting:
        with writing("workdir", job.folder):
            job.folder.mkdir(parents=True, exist_ok=True)
            (job.folder / FAILURE).unlink(missing_ok=True)
            write_json(job.folder / JOB, job.config)

    def run(job: Job) -> None:
        progress.started(job)
        problem = launch(job.folder)
        if not job.done and not (job.folder / FAILURE).exists():
            write_json(job.folder / FAILURE, {"error": problem or "the run wrote no result"})
        progress.ended(job)

    pool = concurrent.futures.ThreadPoolExecutor(workers)
    try:
        for future in [pool.submit(run, job) for job in waiting]:
            future.result()
    finally:
        pool.shutdown(cancel_futures=True)  # when interrupted, start no other run


class _Progress:
    """Print a line when a run starts or ends: the run, how many are done, the time left."""

    def __init__(self, jobs: list[Job]):
        self._total, self._ended = len(jobs), sum(job.done for job in jobs)
        self._initial = self._ended
        self._begun = time.perf_counter()
        if self._ended:
            self._show(f"{self._ended} already done")

    def started(self, job: Job) -> None:
        self._show(f"{job.cell}, seed {job.seed}: started")

    def ended(self, job: Job) -> None:
        self._ended += 1
        row = outcome(job)
        end = f"failed: {row['error']}" if row["error"] else f"top-1 {100 * row[METRIC]:.2f} %"
        self._show(f"{job.cell}, seed {job.seed}: {end}")

    def _show(self, text: str) -> None:
        meter = tqdm.format_meter(
            self._ended,
            self._total,
            time.perf_counter() - self._begun,
            initial=self._initial,
            bar_format="[{n_fmt}/{total_fmt} runs, {elapsed}<{remaining}]",
        )
        print(f"{meter} {text}", flush=True)


def outcome(job: Job) -> Row:
    """Return the figures of a run, or its error: nothing that depends on when it ran."""
    row: Row = {"cell": job.cell, "seed": job.seed, "config": job.hash, "error": ""}
    if job.done:
        result = json.loads((job.folder / RESULT).read_text())
        summary = {k: v for k, v in result.pop("summary").items() if k != "seconds"}
        return row | summary | result
    failure = job.folder / FAILURE
    error = json.loads(failure.read_text())["error"] if failure.exists() else "not run"
    return row | {"error": error}
