"""The programs of a classifier as rows of a table: one per library and way to use it."""

import statistics

from experiments.benchmark import report

# The name of a program before the comma -> that of its row.
NAMES = {
    "as trained": "ours",
    "folded": "ours folded",
    "PyTorch eager": "pytorch eager",
    "PyTorch compiled": "pytorch compiled",
    "PyTorch compiled and frozen": "pytorch frozen",
    "ONNX Runtime": "onnxruntime",
    "OpenVINO": "openvino",
}
OURS = ("ours", "ours folded")


def row_of(program: str) -> str | None:
    """Return the name of a program's row; None if it has none."""
    return NAMES.get(program.partition(",")[0])


def rows(seconds: dict[str, list[float]], batch_size: int) -> list[dict]:
    """Return a row per name: its speed, and the ratios of our speeds to it, computed per round.

    Args:
      seconds: program -> seconds per round; of PyTorch's layouts the faster one makes the row.
    """
    best: dict[str, list[float]] = {}
    for program in sorted(seconds, key=lambda name: statistics.median(seconds[name])):
        if name := row_of(program):
            best.setdefault(name, seconds[program])
    table = []
    for name in filter(best.get, NAMES.values()):
        speed = report.speed(best[name], batch_size)
        row = {"name": name, "batch_size": batch_size, "images_per_second": speed.pop("images/s")}
        ratios = {f"{own} / it": report.ratio(best[name], best[own]) for own in OURS if own in best}
        table.append(row | speed | ratios)
    return table
