"""Check a run's data, memory, disk and speed before it starts."""

import dataclasses
import math
import os
import shutil
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from resnest_jax import recipe
from resnest_jax.config import complete, flatten
from resnest_jax.errors import InputError
from resnest_jax.files import write_json, writing
from resnest_jax.runs import check_classes, parameter_table
from resnest_jax.tasks.loading import read_batch
from resnest_jax.training.curves import plot_schedule
from resnest_jax.training.distributed import is_main
from resnest_jax.training.mesh import batch_sharding, shard
from resnest_jax.training.run import Run
from resnest_jax.training.state import abstract_state, initial_state
from resnest_jax.training.step import jit_train_step
from resnest_jax.training.task import HostBatch
from resnest_jax.training.tracker import check_tracker
from resnest_jax.workdir import CONFIG, PARAMETERS, check_workdir

FOLDER = "dry_run"
GIB, MIB = 2**30, 2**20
# For measuring the rate of reading: at least and at most. The first batches may lie ready.
INPUT_SECONDS = (1.0, 5.0)
STEP_SECONDS = 5.0  # for measuring steps
PEAK_SECONDS = 1.5  # a step that takes longer at the speed of a matrix product is not run
STEP_RATE, STEP_RATE_BOUND = "step_images_per_second", "step_images_per_second_at_most"
INPUT_RATE = "input_images_per_second"


def dry_run(config: ConfigDict, workdir: Path) -> dict:
    """Run up to the second step; print and return a report.

    Writes only ``config.json``, ``parameters.txt``, ``schedule.png`` and ``report.json``, in
    ``workdir/dry_run``.

    Raises:
      InputError: if the run cannot work. If config and data are valid, the message gives all other
        reasons in one line.
    """
    run, report, batch, problems = check_data(config, workdir)
    lowered = lower_for(run, run.options.batch_size)
    least = _peak_seconds(lowered)
    # The processes communicate in a step, so all must run the same number of steps.
    measured = _agreed(least < PEAK_SECONDS)
    compiled, memory = _compile(lowered) if measured else _compile_to_read(lowered)
    report |= show("memory per device, GiB", memory)
    fits = memory.get("needed_gib", 0) <= memory.get("available_gib", 0)
    if fits:
        seconds = _measure_step(run, batch, compiled) if measured else least
        rate = run.options.batch_size / seconds
        name = STEP_RATE if measured else STEP_RATE_BOUND
        report |= show("step", {name: round(rate, 1), "step_seconds": round(seconds, 3)})
        report |= show("limited", {"by": "input" if report[INPUT_RATE] < rate else "step"})
        slower = min(report[INPUT_RATE], rate)
        images = run.options.total_steps * run.options.batch_size
        report |= show("training", {"hours": round(images / slower / 3600, 2)})
    else:
        problems.insert(
            0,
            f"a step needs {memory['needed_gib']} GiB, more than the {memory['available_gib']} GiB "
            f"on each of {jax.device_count()} device(s): lower batch_size {config.batch_size}, "
            f"raise parallel.accumulate {run.options.accumulate}, set model.remat or use more "
            "devices",
        )
    finish(workdir, report, problems)
    return report


def check_data(
    config: ConfigDict, workdir: Path, mesh: Mesh | None = None
) -> tuple[Run, dict, HostBatch, list[str]]:
    """Check all of a run but its step, on the devices of a mesh or all that there are.

    Returns:
      run: the run.
      report: what was found so far.
      batch: a training batch, maybe of fewer images.
      problems: why the run cannot work.

    Raises:
      InputError: if config or data are not valid.
    """
    folder = workdir / FOLDER
    config = complete(config)
    check_tracker(config.tracker)
    run = recipe.build(config, folder, mesh=mesh)
    check_workdir(workdir, config)
    check_classes(run, workdir)
    if is_main():
        _describe(run, config, workdir, folder)
    report = {
        "steps": run.options.total_steps,
        "steps_per_epoch": round(run.options.steps_per_epoch, 2),
    }
    show("run", report)
    batch, data = _measure_input(config, folder)
    report |= show("data", data)
    if run.pretrained:
        run.pretrained()
        show("pretrained", {"weights": config.pretrained.weights})
    report["batch_mib"] = show("largest batch, MiB", batch_memory(run))
    report |= show("disk, GiB", _disk(run, config, workdir))
    problems = []
    if report["checkpoints_gib"] > report["free_gib"]:
        problems.append(
            f"{workdir} has {report['free_gib']} GiB free, but the checkpoints need "
            f"{report['checkpoints_gib']} GiB: lower checkpoint.keep_last or use another disk"
        )
    return run, report, batch, problems


def finish(workdir: Path, report: dict, problems: list[str]) -> None:
    """Write the report; raise InputError with the problems if there are any."""
    if is_main():
        write_json(workdir / FOLDER / "report.json", report)
    if problems:
        raise InputError("; ".join(problems))


def _describe(run: Run, config: ConfigDict, workdir: Path, folder: Path) -> None:
    """Print the config and the parameters; write both and the schedule to the folder."""
    with writing("workdir", workdir):
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / CONFIG, config.to_dict())
        (folder / PARAMETERS).write_text(parameter_table(run) + "\n")
    plot_schedule(run.schedule, run.options.total_steps, run.options.steps_per_epoch, folder)
    for key, value in flatten(config).items():
        print(f"{key} = {value!r}")
    print((folder / PARAMETERS).read_text())


def show(title: str, values: dict) -> dict:
    """Print a line of values; return them."""
    if is_main():
        text = ", ".join(f"{name} {value}" for name, value in values.items())
        print(f"{title}: {text}", flush=True)
    return values


def _measure_input(config: ConfigDict, folder: Path) -> tuple[HostBatch, dict]:
    """Read an evaluation batch, then training batches for some seconds; return one and the rate."""
    small = complete(config)
    least = jax.device_count() * config.parallel.accumulate
    # A full batch may take too long; the rate does not depend on the batch size.
    small.batch_size = min(config.batch_size, least * math.ceil(32 / least))
    batches = recipe.build(small, folder).batches
    read_batch(batches, "eval")
    stream = batches.train(0)
    # This starts the workers. A copy: the batch is in their shared memory.
    batch = jax.tree.map(np.array, next(stream))
    begun, images, seconds = time.perf_counter(), 0, 0.0
    least, most = INPUT_SECONDS
    while seconds < least or (seconds < most and images < batches.num_train):
        images += len(next(iter(next(stream).values())))
        seconds = time.perf_counter() - begun
    rate = images / seconds
    stream.close()
    return batch, {
        "train_images": batches.num_train,
        "eval_images": batches.num_eval,
        "classes": len(batches.class_names),
        INPUT_RATE: round(rate * jax.process_count(), 1),
    }


def compile_step(run: Run) -> tuple[jax.stages.Compiled, dict]:
    """Compile the training step; return it with the memory needed and available per device."""
    return _compile(lower_for(run, run.options.batch_size))


def _compile_to_read(lowered: jax.stages.Lowered) -> tuple[jax.stages.Compiled, dict]:
    """Compile a program that is not run: on CPU with slow machine code, and so in less time."""
    if jax.default_backend() != "cpu":
        return _compile(lowered)
    key = "jax_persistent_cache_min_compile_time_secs"
    least = getattr(jax.config, key)
    # From the cache, XLA:CPU loads a large program in more time than it takes to compile it.
    jax.config.update(key, math.inf)
    try:
        return _compile(lowered, {"xla_backend_optimization_level": "0"})
    finally:
        jax.config.update(key, least)


def _compile(
    lowered: jax.stages.Lowered, options: dict[str, Any] | None = None
) -> tuple[jax.stages.Compiled, dict]:
    begun = time.perf_counter()
    compiled = lowered.compile(compiler_options=options)
    seconds = time.perf_counter() - begun
    analysis = compiled.memory_analysis()
    if analysis is None:  # on some backends
        return compiled, {"compile_seconds": round(seconds, 1)}
    return compiled, {
        "needed_gib": round(needed_bytes(analysis) / GIB, 2),
        "available_gib": round(_device_memory() / GIB, 2),
        "compile_seconds": round(seconds, 1),
    }


def lower_for(run: Run, batch_size: int) -> jax.stages.Lowered:
    """Lower the training step of a run for its largest batch, but of so many images."""
    return jit_train_step(run).lower(abstract_state(run), abstract_batch(run, batch_size))


def needed_bytes(analysis: Any) -> int:
    """Return the bytes that a program needs on a device, from its ``memory_analysis()``."""
    return (
        analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        - analysis.alias_size_in_bytes
        + analysis.temp_size_in_bytes
    )


def abstract_batch(run: Run, batch_size: int | None = None) -> dict[str, jax.ShapeDtypeStruct]:
    """Return shapes, dtypes and shardings of the largest training batch.

    ``batch_size`` is by default that of the run.
    """

    def size(spec: dict[str, jax.ShapeDtypeStruct]) -> int:
        return sum(leaf.size * leaf.dtype.itemsize for leaf in spec.values())

    images, sharding = batch_size or run.options.batch_size, batch_sharding(run.mesh)
    return {
        name: jax.ShapeDtypeStruct((images, *leaf.shape[1:]), leaf.dtype, sharding=sharding)
        for name, leaf in max(run.batches.train_specs(), key=size).items()
    }


def batch_memory(run: Run) -> dict[str, float]:
    """Return the MiB of each array of the largest training batch, over all devices."""
    return {
        name: round(math.prod(leaf.shape) * leaf.dtype.itemsize / MIB, 2)
        for name, leaf in abstract_batch(run).items()
    }


def _device_memory() -> int:
    """Return the memory of one device in bytes; CPU devices share the machine's memory."""
    device = jax.local_devices()[0]
    limit = (device.memory_stats() or {}).get("bytes_limit")
    if limit:
        return limit
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // jax.local_device_count()


def _disk(run: Run, config: ConfigDict, workdir: Path) -> dict:
    """Return the size of all checkpoints (kept, best and in progress) and the free space."""
    state = abstract_state(run)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    count = config.checkpoint.keep_last + 2
    return {
        "checkpoints_gib": round(count * size / GIB, 2),
        "free_gib": round(shutil.disk_usage(workdir).free / GIB, 2),
    }


def _peak_seconds(lowered: jax.stages.Lowered) -> float:
    """Return the seconds of a step at the speed of a matrix product: no step takes less."""
    analysis: Any = lowered.cost_analysis() or {}
    seconds = analysis.get("flops", 0.0) / _matmul_rate()
    if jax.default_backend() == "cpu":
        seconds *= jax.local_device_count()  # CPU devices share the cores
    return seconds


def _measure_step(run: Run, batch: HostBatch, compiled: jax.stages.Compiled) -> float:
    """Return the seconds of the fastest step of some."""
    state = initial_state(dataclasses.replace(run, pretrained=None))
    full = shard(_fill(abstract_batch(run), batch), run.mesh)
    times = []
    while not times or _agreed(len(times) < 4 and sum(times) < STEP_SECONDS):
        begun = time.perf_counter()
        state, metrics = compiled(state, full)
        loss = float(metrics["loss"])
        times.append(time.perf_counter() - begun)
        if not math.isfinite(loss):
            look = "at the learning rate" if times[1:] else "at the data and the first weights"
            raise InputError(f"the loss of step {len(times)} is {loss}; look {look}")
    return min(times)


def _fill(specs: dict[str, jax.ShapeDtypeStruct], batch: HostBatch) -> HostBatch:
    """Make this process's part of a batch of the given shapes by repeating values of ``batch``."""
    count = jax.process_count()
    return {
        name: np.resize(batch[name], (leaf.shape[0] // count, *leaf.shape[1:]))
        for name, leaf in specs.items()
    }


def _agreed(decision: bool) -> bool:
    """Broadcast the main process's decision."""
    return bool(multihost_utils.broadcast_one_to_all(np.int32(decision)))


def _matmul_rate() -> float:
    """Measure floating-point operations per second of a matrix product on one device."""
    size = 2048
    x = jnp.ones((size, size))
    product = jax.jit(jnp.matmul)
    product(x, x).block_until_ready()
    begun = time.perf_counter()
    product(x, x).block_until_ready()
    return 2 * size**3 / (time.perf_counter() - begun)
