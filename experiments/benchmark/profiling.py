"""Profile a program: time per kind of operation, and the roofline of the machine."""

import collections
import math
import re
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp

from experiments.benchmark.ours import Program, compile_program

CALLS = 3


def rows(program: Program, dtype, out: Path | None) -> list[dict]:
    """Return milliseconds per call and kind of operation, over all threads; print the roofline.

    The roofline's peak is that of matrix products in ``dtype``.
    """
    _print_roofline(program, dtype)
    moves = moved(program.compiled.as_text())
    size = sum(size for _, size in moves) / 1e6
    print(f"{len(moves)} copies or transposes change a layout: {size:.2f} MB")
    directory = (out or Path(tempfile.mkdtemp())) / "trace"
    program.call()
    with jax.profiler.trace(str(directory)):
        for _ in range(CALLS):
            program.call()
    print(f"trace: {directory}")
    kinds = _kinds(program.compiled.as_text())
    total = collections.Counter()
    newest = max(directory.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    for plane in jax.profiler.ProfileData.from_file(str(newest)).planes:
        for line in plane.lines:
            for event in line.events:
                if event.name in kinds:
                    total[kinds[event.name]] += event.duration_ns / 1e6 / CALLS
    return [{"": kind, "ms": round(ms, 2)} for kind, ms in total.most_common(20)]


def _kinds(hlo: str) -> dict[str, str]:
    """Return instruction -> kind: last part of its ``op_name``, "(gradient)" if in the gradient."""
    kinds = {}
    for name, opcode, rest in re.findall(r"%([\w.\-]+) = (?:\(.*?\)|\S+) ([\w\-]+)\((.*)", hlo):
        if opcode not in ("while", "call", "parameter", "tuple"):
            found = re.search(r'op_name="([^"]*)"', rest)
            source = found[1].split("/") if found else [opcode]
            gradient = " (gradient)" if any("transpose(" in part for part in source) else ""
            kinds[name] = source[-1] + gradient
    return kinds


def moved(hlo: str) -> list[tuple[list[int], int]]:
    """Return shape and bytes of each array that an instruction of optimised HLO only moves.

    A transpose whose layout changes with it moves nothing, nor does the copy of a scalar.
    """
    array = r"%([\w.\-]+) = ([a-z]+)(\d+)\[([\d,]+)\]\{([\d,]+)\} ([\w\-]+)\(%?([\w.\-]*)(.*)"
    found = {name: rest for name, *rest in re.findall(array, hlo)}
    moves = []
    for _, bits, shape, layout, opcode, operand, rest in found.values():
        if opcode not in ("copy", "transpose") or operand not in found:
            continue
        order = _numbers(layout)
        if opcode == "transpose":
            axes = _numbers(re.search(r"dimensions=\{([\d,]+)\}", rest)[1])
            order = [axes[axis] for axis in order]
        if order != _numbers(found[operand][3]):
            moves.append((_numbers(shape), math.prod(_numbers(shape)) * int(bits) // 8))
    return moves


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _print_roofline(program: Program, dtype) -> None:
    """Print the time of a call, and of its arithmetic and bytes at the machine's measured peaks."""
    cost = program.compiled.cost_analysis()
    side = 2048 if jax.default_backend() == "cpu" else 8192
    matrix = jax.random.normal(jax.random.key(0), (side, side), dtype)
    flops = 2 * side**3 / _best(compile_program(jnp.matmul, matrix, matrix))
    array = jnp.ones(1 << 26)
    bandwidth = 2 * array.nbytes / _best(compile_program(lambda x: x + 1, array))
    seconds = _best(program)
    kind = jnp.dtype(dtype).name
    print(f"measured peaks: {flops / 1e9:.0f} GFLOP/s in {kind}, {bandwidth / 1e9:.1f} GB/s")
    print(
        f"one call: {1e3 * seconds:.1f} ms; its {cost['flops'] / 1e9:.1f} GFLOP alone "
        f"{1e3 * cost['flops'] / flops:.1f} ms, its {cost['bytes accessed'] / 1e9:.2f} GB alone "
        f"{1e3 * cost['bytes accessed'] / bandwidth:.1f} ms (XLA's counts)"
    )


def _best(program: Program) -> float:
    """Return the seconds of the fastest of a few calls."""
    seconds = []
    for _ in range(6):
        begun = time.perf_counter()
        program.call()
        seconds.append(time.perf_counter() - begun)
    return min(seconds)
