"""How time and memory grow with depth, image size, radix, cardinality, batch size and devices.

    python -m experiments.growth --workdir=DIR            inference, norms folded
    python -m experiments.growth --workdir=DIR --train    training steps, also on several devices

One of them at a time takes other values; the rest stays as in --model, --image_size and
--batch_size. The slope is the exponent a of the power x^a that fits best: a line through the
logarithms. That of the multiply-adds (of the forward pass) is there to compare: time that grows
faster is lost elsewhere. The programs of an axis take turns. For several devices, each with
--batch_size images, the step is compiled for virtual ones and not run: temporary memory of one, and
bytes exchanged. Writes growth.csv and .png, with --train growth_training.csv and .png.
"""

import csv
import io
from pathlib import Path
from typing import Any, NamedTuple

import jax
import matplotlib.figure
import numpy as np
from absl import flags

from experiments.benchmark import ours, report
from experiments.scaling import devices
from experiments.timing import random_variables, time_calls
from resnest_jax import arguments, cli
from resnest_jax.config import default_config
from resnest_jax.errors import InputError
from resnest_jax.files import make_folder, write_atomic
from resnest_jax.models.costs import count_macs
from resnest_jax.models.resnest import ResNeSt
from resnest_jax.models.zoo import STAGE_SIZES, create_model

AXES = {
    "depth": (14, 26, 50, 101, 200),
    "image_size": (112, 160, 224, 320, 448),
    "radix": (1, 2, 4, 8),
    "cardinality": (1, 2, 4),
    "batch_size": (1, 2, 4, 8, 16, 32),
    "devices": (1, 2, 4, 8),  # of training alone
}
# Column -> what it is, and its unit.
COLUMNS = {
    "milliseconds": ("time", "ms"),
    "temporary_mib": ("temporary memory", "MiB"),
    "gmacs": ("multiply-adds", "G"),
    "exchanged_mb": ("exchanged", "MB"),
}

FLAGS = flags.FlagValues()
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Directory for the results.", required=True, flag_values=FLAGS
)
TRAIN = flags.DEFINE_bool("train", False, "Training steps instead of inference.", flag_values=FLAGS)
MODEL = flags.DEFINE_string("model", "resnest50", "Name of the model.", flag_values=FLAGS)
IMAGE_SIZE = flags.DEFINE_integer(
    "image_size", 224, "Side of the images.", lower_bound=32, flag_values=FLAGS
)
BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", 8, "Images per call and device.", lower_bound=1, flag_values=FLAGS
)
REPEATS = flags.DEFINE_integer(
    "repeats", 5, "Number of timed rounds.", lower_bound=2, flag_values=FLAGS
)
CHOSEN = flags.DEFINE_multi_enum(
    "axis",
    None,
    list(AXES),
    "What to vary, several times for several; default: all.",
    flag_values=FLAGS,
)


def ranges_of(train: bool) -> dict[str, tuple[int, ...]]:
    """Return the values on each axis; batch norms do not train on one image."""
    if train:
        return AXES | {"batch_size": AXES["batch_size"][1:]}
    return {axis: values for axis, values in AXES.items() if axis != "devices"}


class Point(NamedTuple):
    """A model, and the side and number of its images."""

    model: ResNeSt
    image_size: int
    batch_size: int

    def at(self, axis: str, value: int) -> "Point":
        """Return the point with another value on an axis."""
        if axis in self._fields:
            return self._replace(**{axis: value})
        fields = {"stage_sizes": STAGE_SIZES[value]} if axis == "depth" else {axis: value}
        return self._replace(model=self.model.clone(**fields))


def measure(axis: str, points: dict[int, Point], train: bool, repeats: int) -> list[dict[str, Any]]:
    """Return a row of the table for each value on an axis."""
    programs = {}
    for value, (model, side, batch_size) in points.items():
        print(f"compiling {axis} {value}", flush=True)
        images = jax.random.normal(jax.random.key(1), (batch_size, side, side, 3))
        if train:
            programs[value] = ours.training_step(model, images)
        else:
            programs[value] = ours.folded(model, random_variables(model, images), images)
    seconds = time_calls({value: program.call for value, program in programs.items()}, repeats)
    return [
        {
            "axis": axis,
            "value": value,
            "milliseconds": report.milliseconds(seconds[value]),
            "temporary_mib": programs[value].temporary_mib,
            "gmacs": count_macs(model, side) * batch_size / 1e9,
        }
        for value, (model, side, batch_size) in points.items()
    ]


def measure_devices(base: Point, model: str, values: tuple[int, ...]) -> list[dict[str, Any]]:
    """Return a row for each number of devices: of a training step, for ten classes."""
    config = default_config("classification")
    config.dataset, config.model.name, config.image_size = "sklearn_digits", model, base.image_size
    config.steps = config.eval_every_steps = 1
    rows = []
    for count in values:
        print(f"compiling for {count} devices", flush=True)
        found = devices.measure(config, count, base.batch_size)
        columns = {column: found[column] for column in ("temporary_mib", "exchanged_mb")}
        rows.append({"axis": "devices", "value": count, **columns})
    return rows


def slope(rows: list[dict[str, Any]], column: str) -> float | None:
    """Return the exponent a of column ~ value^a; None with fewer than two numbers above 0."""
    points = _points(rows, column)
    if len(points) < 2:
        return None
    x, y = np.log(points).T
    return float(np.polyfit(x, y, 1)[0])


def _points(rows: list[dict[str, Any]], column: str) -> np.ndarray:
    """Return (value, number) for the numbers above 0: those with a logarithm."""
    return np.array([(row["value"], row[column]) for row in rows if row.get(column)])


def show(table: dict[str, list[dict[str, Any]]]) -> None:
    """Print the slopes on each axis."""
    print(f"| axis | values | {' | '.join(label for label, _ in COLUMNS.values())} |")
    print("|---" * (2 + len(COLUMNS)) + "|")
    for axis, rows in table.items():
        slopes = [slope(rows, column) for column in COLUMNS]
        texts = ["" if a is None else f"{a:z.2f}" for a in slopes]
        values = ", ".join(str(row["value"]) for row in rows)
        print(f"| {axis} | {values} | {' | '.join(texts)} |")


def draw(table: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Draw a panel for each axis: what grows, relative to the first number, and its slope."""
    columns = min(3, len(table))
    lines = -(-len(table) // columns)
    figure = matplotlib.figure.Figure(figsize=(5 * columns, 4 * lines), layout="constrained")
    for place, (axis, rows) in enumerate(table.items(), 1):
        axes = figure.add_subplot(lines, columns, place)
        for i, (column, (label, unit)) in enumerate(COLUMNS.items()):
            if (a := slope(rows, column)) is None:
                continue
            x, y = _points(rows, column).T
            text = f"{label}: {y[0]:.4g} {unit} at {x[0]:.0f}, slope {a:z.2f}"
            axes.plot(x, y / y[0], "o-", color=f"C{i}", label=text)
        values = [row["value"] for row in rows]
        axes.set(xscale="log")
        axes.set_yscale("log", base=2)
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_xticks(values, values)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.set(title=axis.replace("_", " "), ylabel="times the first")
        axes.legend(fontsize="small")
    figure.savefig(path, dpi=100)


def main(_: list[str]) -> None:
    """Measure along the axes; print the slopes and write all numbers."""
    ranges = ranges_of(TRAIN.value)
    if not set(CHOSEN.value or ()) <= set(ranges):
        raise InputError("--axis=devices is of training steps alone; give --train too")
    base = Point(create_model(MODEL.value), IMAGE_SIZE.value, BATCH_SIZE.value)
    folder = arguments.local_path(WORKDIR)
    make_folder("--workdir", folder)
    table = {}
    path = folder / ("growth_training" if TRAIN.value else "growth")
    for axis, values in ranges.items():
        if axis not in (CHOSEN.value or ranges):
            continue
        if axis == "devices":
            table[axis] = measure_devices(base, MODEL.value, values)
        else:
            points = {value: base.at(axis, value) for value in values}
            table[axis] = measure(axis, points, TRAIN.value, REPEATS.value)
        write(table, path)
    show(table)


def write(table: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Write PATH.csv and PATH.png."""
    lines = io.StringIO()
    writer = csv.DictWriter(lines, ["axis", "value", *COLUMNS])
    writer.writeheader()
    writer.writerows(row for rows in table.values() for row in rows)
    write_atomic(path.with_suffix(".csv"), lines.getvalue().encode())
    draw(table, path.with_suffix(".png"))


if __name__ == "__main__":
    cli.run(main, FLAGS)
