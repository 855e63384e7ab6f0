"""What devices send each other, read from the text of a compiled program."""

import math
import re
from typing import NamedTuple

KINDS = "all-reduce|all-gather|reduce-scatter|collective-permute|all-to-all"
COMPUTATION = r"^(?:ENTRY )?%?([\w.-]+) \("  # the others are called by it or by each other


class Collective(NamedTuple):
    """An operation, the bytes of its result on one device, and whether it is inside a loop."""

    kind: str
    bytes: int
    looped: bool = False


def collectives(program: str) -> list[Collective]:
    """Return each collective in the text of a compiled program, of CPU, GPU or TPU.

    The result of an asynchronous one is that of its ``-done``: its ``-start`` has the operands too.
    """
    blocks = re.split(COMPUTATION, program, flags=re.MULTILINE)
    computations = dict(zip(blocks[1::2], blocks[2::2], strict=True))
    looped = _looped(program, computations)
    return [
        Collective(kind, _bytes(shapes), name in looped)
        for name, text in (computations or {"": program}).items()
        for shapes, kind in re.findall(rf"= (\(.*?\)|\S+) ({KINDS})(?:-done)?\(", text)
    ]


def _looped(program: str, computations: dict[str, str]) -> set[str]:
    """Return the computations that loops run, also through others."""
    found: set[str] = set()
    left = re.findall(r"\bbody=%?([\w.-]+)", program)
    while left:
        name = left.pop()
        if name in computations and name not in found:
            found.add(name)
            left += re.findall(r"%([\w.-]+)", computations[name])
    return found


def _bytes(shapes: str) -> int:
    """Return the bytes of arrays such as ``f32[8,128]{1,0:T(8,128)}`` and ``(bf16[2], pred[])``."""
    return sum(
        _item_bytes(dtype) * math.prod(int(size) for size in sizes.split(",") if size)
        for dtype, sizes in re.findall(r"(\w+)\[([\d,]*)\]", shapes)
    )


def _item_bytes(dtype: str) -> int:
    bits = re.search(r"\d+", dtype)  # none in pred; 8 in f8e4m3fn
    return max(1, int(bits[0]) // 8) if bits else 1
