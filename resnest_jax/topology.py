"""Compile a run's training step for a slice of TPUs that is not there: estimates, not runs.

XLA compiles for a described slice on any machine that has libtpu; nothing is executed. Memory,
operations and what chips exchange are read from the program.
"""

import importlib.util
import math
import os
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh
from ml_collections import ConfigDict

from resnest_jax.dry_run import GIB, MIB, check_data, finish, lower_for, needed_bytes, show
from resnest_jax.errors import InputError, one_line
from resnest_jax.training.collectives import Collective, collectives
from resnest_jax.training.run import Run


class Chip(NamedTuple):
    """A kind of chip: peaks, and the memory that XLA leaves to a program.

    Attributes:
      flops: of bfloat16 a second; float32 products take one bfloat16 pass by default.
      hbm: bytes; what XLA's compiler names when a program is too large.
      bandwidth: of the memory, bytes a second.
      interconnect: bytes a second that a chip sends over all its links, one direction.
      most: chips of the largest slice.
    """

    flops: float
    hbm: float
    bandwidth: float
    interconnect: float
    most: int


# cloud.google.com/tpu/docs/{v5e,v5p,v6e}, "System architecture". Their rates of the interconnect
# are of both directions (v5e 400, v6e 800 GB/s) or in bits (v5p 4800 Gb/s, one direction).
CHIPS = {
    "v5e": Chip(197e12, 15.75 * GIB, 819e9, 200e9, 256),
    "v5p": Chip(459e12, 95.74 * GIB, 2765e9, 600e9, 6144),
    "v6e": Chip(918e12, 31.25 * GIB, 1638e9, 400e9, 256),
}
# libtpu asks a TPU's machine for these, and says much on stderr where there is none.
ENVIRONMENT = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no chip is used, so none has to be locked
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
}
MOST_COMPILES = 4  # in the search for the largest batch, since each takes minutes
NOTE = "compiled for chips that are not there: estimates, not a run"


class Slice(NamedTuple):
    """A slice of TPUs: its name, kind of chip and mesh of described devices."""

    name: str
    chip: Chip
    mesh: Mesh


def describe_slice(name: str) -> Slice:
    """Describe a slice such as ``v5e:4x4``; JAX itself stays on CPU if nothing else is chosen.

    Raises:
      InputError: if there is no such slice, or libtpu is not installed.
    """
    kind, _, shape = name.partition(":")
    sides = [int(side) for side in shape.split("x") if side.isdecimal()]
    known = kind in CHIPS and shape == "x".join(map(str, sides)) and len(sides) in (2, 3)
    if not known or not 1 <= math.prod(sides) <= CHIPS[kind].most:
        raise InputError(
            f"--topology must be a kind of chip, {', '.join(CHIPS)}, and the sides of a slice of "
            f"it, such as v5e:4x4 or v5p:2x2x4; got {name!r}"
        )
    if importlib.util.find_spec("libtpu") is None:
        raise InputError(
            f"--topology={name} needs libtpu, the compiler for TPUs: pip install 'resnest_jax[tpu]'"
        )
    for variable, value in ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    if not jax.config.jax_platforms:  # pyright: ignore[reportAttributeAccessIssue]
        jax.config.update("jax_platforms", "cpu")
    try:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=name).devices
    except jax.errors.JaxRuntimeError as error:
        raise InputError(
            f"--topology={name}: libtpu has no such slice ({one_line(error)})"
        ) from None
    return Slice(name, CHIPS[kind], Mesh(np.array(devices), ("data",), (AxisType.Auto,)))


def dry_run(config: ConfigDict, workdir: Path, topology: str) -> dict:
    """Check a run like ``dry_run.dry_run``, but compile its step for a slice; run no step.

    Raises:
      InputError: if the run cannot work, or its step does not fit a chip.
    """
    described = describe_slice(topology)
    run, report, _, problems = check_data(config, workdir, described.mesh)
    report |= show("slice", {"topology": topology, "chips": described.mesh.size, "note": NOTE})
    found = estimate(run, described, run.options.batch_size)
    report |= show("step", found)
    report |= show("largest batch", largest_batch(run, described, found))
    if not found["fits"]:
        problems.insert(
            0,
            f"a step of batch_size {run.options.batch_size} does not fit {topology}: "
            f"{found['reason']}; the largest batch found that fits is {report['largest_batch']}",
        )
    finish(workdir, report, problems)
    return report


def estimate(run: Run, described: Slice, batch_size: int) -> dict:
    """Compile the step for a batch size and read what it takes; per chip if not said otherwise.

    The roofline is the longer of the operations at the chip's peak and the bytes at its memory's
    rate. XLA's bytes include those in the chip's own memory. ``megacycles`` sums what XLA itself
    expects of its fusions, convolutions and copies, without the waits for memory or other chips.

    XLA counts a loop's body once, so its figures count for each accumulated part: those of the
    update, which is not in the loop, are a little too high.
    """
    begun = time.perf_counter()
    chips, chip, parts = described.mesh.size, described.chip, run.options.accumulate
    found: dict = {"batch_size": batch_size, "images_per_chip": batch_size // chips}
    try:
        compiled = lower_for(run, batch_size).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return found | {"fits": False} | _excess(str(error), chip)
    memory: Any = compiled.memory_analysis()
    cost: Any = compiled.cost_analysis()
    program = compiled.as_text() or ""
    sent = collectives(program)
    compute = parts * cost["flops"] / chip.flops
    traffic = parts * cost["bytes accessed"] / chip.bandwidth
    return found | {
        "fits": True,
        "needed_gib": round(needed_bytes(memory) / GIB, 3),
        "arguments_gib": round(memory.argument_size_in_bytes / GIB, 2),
        "temporaries_gib": round(memory.temp_size_in_bytes / GIB, 2),
        "available_gib": round(chip.hbm / GIB, 2),
        "exchanged": _by_kind(sent, parts),
        "exchange_ms": round(1e3 * exchange_bytes(sent, chips, parts) / chip.interconnect, 2),
        "tflop": round(parts * cost["flops"] / 1e12, 3),
        "accessed_gb": round(parts * cost["bytes accessed"] / 1e9, 2),
        "compute_ms": round(1e3 * compute, 2),
        "memory_ms": round(1e3 * traffic, 2),
        "roofline_ms": round(1e3 * max(compute, traffic), 2),
        "megacycles": round(parts * estimated_cycles(program) / 1e6, 1),
        "images_per_second_per_chip": round(batch_size / chips / max(compute, traffic), 1),
        "compile_seconds": round(time.perf_counter() - begun, 1),
    }


def estimated_cycles(program: str) -> int:
    """Return the sum of the cycles that XLA expects of the operations of a program for TPU."""
    return sum(map(int, re.findall(r'"estimated_cycles":"(\d+)"', program)))


def _excess(error: str, chip: Chip) -> dict:
    """Return the memory that is needed, if XLA's error says so, and the error in short."""
    needed = re.search(r"(?:Used |\()([\d.]+)G\b", error)
    reason = re.search("Ran out of memory.*", error)
    return {
        "needed_gib": float(needed[1]) if needed else None,
        "available_gib": round(chip.hbm / GIB, 2),
        "reason": one_line(reason[0] if reason else error)[:300],
    }


def _by_kind(sent: list[Collective], parts: int) -> dict:
    """Return number and MiB a step of each kind of collective."""
    count: Counter[str] = Counter()
    size: Counter[str] = Counter()
    for operation in sent:
        times = parts if operation.looped else 1
        count[operation.kind] += times
        size[operation.kind] += times * operation.bytes
    return {k: {"count": count[k], "mib": round(size[k] / MIB, 2)} for k in sorted(count)}


def exchange_bytes(sent: list[Collective], chips: int, parts: int = 1) -> float:
    """Return the bytes that each chip sends in a step, by the algorithms that send least."""
    rest = (chips - 1) / chips
    factors = {"all-reduce": 2 * rest, "reduce-scatter": chips - 1, "collective-permute": 1}
    return sum(
        factors.get(operation.kind, rest) * operation.bytes * (parts if operation.looped else 1)
        for operation in sent
    )


def largest_batch(run: Run, described: Slice, first: dict) -> dict:
    """Search the largest batch that fits: memory is affine in it, so two points give a guess.

    The result has been compiled, but more may fit: compilations are few, and near the limit XLA
    computes some arrays anew instead of keeping them.

    Args:
      first: the estimate for the batch size of the run.
    """
    chips, parts = described.mesh.size, run.options.accumulate
    tried = {first["images_per_chip"]: first}
    while len(tried) < MOST_COMPILES and (images := _guess(tried, parts)) not in {0, *tried}:
        tried[images] = estimate(run, described, images * chips)
    best = max((images for images, found in tried.items() if found["fits"]), default=0)
    return {
        "largest_batch": best * chips,
        "largest_batch_per_chip": best,
        "largest_batch_needed_gib": tried[best]["needed_gib"] if best else None,
        "compiled_per_chip": sorted(tried),
    }


def _guess(tried: dict[int, dict], parts: int) -> int:
    """Return the images a chip to try next; 0 or one that was tried: the search has ended."""
    fitting = sorted(images for images, found in tried.items() if found["fits"])
    too_many = min(tried.keys() - set(fitting), default=math.inf)
    least = min(tried)
    if not fitting:
        needed, available = (tried[least][name] for name in ("needed_gib", "available_gib"))
        return _fewer(least * (0.8 * available / needed if needed else 0.5), parts)
    if len(tried) == 1:
        return _fewer(least / 2, parts)
    high = fitting[-1]
    other = fitting[-2] if math.isinf(too_many) else int(too_many)
    more = (tried[other]["needed_gib"] or 0) - tried[high]["needed_gib"]
    room = tried[high]["available_gib"] - tried[high]["needed_gib"]
    guess = 8 * high
    if more * (other - high) > 0:
        guess = min(guess, high + room * (other - high) / more)
    return _fewer(guess if guess < too_many else (high + too_many) / 2, parts)


def _fewer(images: float, parts: int) -> int:
    """Round down to a multiple of the parts, and of 8 images a part, the rows of a tile."""
    unit = 8 * parts if images >= 8 * parts else parts
    return int(images // unit) * unit
