"""Print results as a table; write them as JSON and a picture."""

import json
import statistics
from pathlib import Path

EAGER = "eager"  # in the names of PyTorch's programs that are not compiled
RATIO = "times eager PyTorch"  # the column with the ratio to the speed of its faster layout


def comparison(seconds: dict[str, list[float]], programs: dict, images: int) -> list[dict]:
    """Return a row per program: images/s and, per round, ratios to the speed of two others.

    These are the first program and, if it was timed, the faster layout of eager PyTorch.
    """
    rows = []
    first = next(iter(seconds.values()))
    eager = [times for name, times in seconds.items() if EAGER in name]
    for name, times in seconds.items():
        ratio = _quartiles([a / b for a, b in zip(first, times, strict=True)])
        rows.append(
            {
                "": name,
                **speed(times, images),
                "ms per call": round(1e3 * statistics.median(times), 1),
                "times the first": round(ratio[1], 3),
                "its quartiles": f"{ratio[0]:.3f} - {ratio[2]:.3f}",
                RATIO: _of_best(eager, times) if eager else "",
                "compile s": _rounded(programs[name].compile_seconds),
                "compile s, cached": _rounded(programs[name].cached_seconds),
                "temporary MiB": _rounded(programs[name].temporary_mib),
            }
        )
    return rows


def parts(seconds: dict[tuple[str, str], list[float]], ours: str) -> list[dict]:
    """Return a row per part: its milliseconds, ours and those of eager PyTorch, and the ratio.

    Args:
      seconds: (part, whose program it is) -> seconds per round.
      ours: whose programs are ours.
    """
    rows = []
    for name in dict.fromkeys(part for part, _ in seconds):
        times = seconds[name, ours]
        eager = [
            found for (part, whose), found in seconds.items() if part == name and whose != ours
        ]
        rows.append({"": name, "ms": milliseconds(times), **beside_eager(eager, times)})
    return rows


def beside_eager(eager: list[list[float]], times: list[float]) -> dict:
    """Return the columns of eager PyTorch's faster layout, none without PyTorch.

    They are its milliseconds and the ratio to its speed of calls that take ``times``.
    """
    if not eager:
        return {}
    best = min(eager, key=statistics.median)
    return {"eager PyTorch, ms": milliseconds(best), RATIO: _of_best(eager, times)}


def milliseconds(times: list[float]) -> float:
    """Return the median of seconds, in milliseconds."""
    return round(1e3 * statistics.median(times), 2)


def speed(times: list[float], images: int) -> dict:
    """Return the columns of a row for calls of these seconds: images/s and quartiles."""
    low, median, high = _quartiles([images / t for t in times])
    return {"images/s": round(median, 2), "quartiles": f"{low:.2f} - {high:.2f}"}


def show(rows: list[dict], name: str, out: Path | None) -> None:
    """Print the rows as a table; with a directory write NAME.json and NAME.png there too."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    print("| " + " | ".join(columns) + " |")
    print("|" + "---|" * len(columns))
    for row in rows:
        print("| " + " | ".join(str(row.get(column, "")) for column in columns) + " |")
    if out is None:
        return
    (out / f"{name}.json").write_text(json.dumps(rows, indent=1) + "\n")
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        print("the picture is skipped: matplotlib is not installed")
        return
    figure, axes = plt.subplots(figsize=(8, 5))
    _draw(axes, rows)
    figure.tight_layout()
    figure.savefig(out / f"{name}.png", dpi=150)
    plt.close(figure)


def _draw(axes, rows: list[dict]) -> None:
    """Draw accuracy against speed, speed by batch size, or one bar per row."""
    if "top-1" in rows[0]:
        _draw_accuracy(axes, rows)
    elif "batch_size" in rows[0]:
        _draw_batch_sizes(axes, rows)
    else:
        value = next(key for key in rows[0] if key in ("images/s", "ms", "auto ms"))
        names, values = zip(*((row[""], row[value]) for row in rows[::-1]), strict=True)
        axes.barh(range(len(names)), values, tick_label=names)  # names may be the same
        axes.set(xlabel=value)


def _draw_accuracy(axes, rows: list[dict]) -> None:
    for family in dict.fromkeys(row["family"] for row in rows):
        members = [row for row in rows if row["family"] == family]
        points = [(row["images/s"], row["top-1"]) for row in members]
        axes.plot(*zip(*points, strict=True), "o", label=family)
        for row, point in zip(members, points, strict=True):
            name = row[""].partition(",")[0].split("_")[-1]
            axes.annotate(name, point, (4, 3), textcoords="offset points", fontsize=6)
    axes.set(xscale="log", xlabel="images/s", ylabel="published top-1, %")
    axes.legend()


def _draw_batch_sizes(axes, rows: list[dict]) -> None:
    names = list(dict.fromkeys(row["name"] for row in rows))
    sizes = list(dict.fromkeys(row["batch_size"] for row in rows))
    width = 0.8 / len(names)
    for i, name in enumerate(names):
        members = [row for row in rows if row["name"] == name]
        offset = (i - (len(names) - 1) / 2) * width
        places = [sizes.index(row["batch_size"]) + offset for row in members]
        speeds = [row["images_per_second"] for row in members]
        axes.bar_label(axes.bar(places, speeds, width, label=name), fmt="%.3g", fontsize=6)
    axes.set_xticks(range(len(sizes)), sizes)
    axes.set(xlabel="batch size", ylabel="images/s")
    axes.legend(ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1))


def _of_best(eager: list[list[float]], times: list[float]) -> float:
    """Return the ratio to the speed of the layout with the smaller median."""
    return ratio(min(eager, key=statistics.median), times)


def ratio(slower: list[float], faster: list[float]) -> float:
    """Return how many times as fast the second calls are: the median over the rounds."""
    return round(statistics.median(a / b for a, b in zip(slower, faster, strict=True)), 3)


def _quartiles(values: list[float]) -> list[float]:
    return statistics.quantiles(values, n=4, method="inclusive")


def _rounded(value: float | None) -> float | str:
    return "" if value is None else round(value, 1)
