"""Time inference of a model with its batch norms as trained and folded, side by side.

    python -m experiments.benchmark --model=resnest50 --image_size=224 --batch_size=8

The rivals take turns, so that whatever else the machine does falls on all of them; each line has
the median over the rounds, the range between the quartiles, and the ratio to the first, taken
round by round. Weights, batch norm statistics and images are random; compiling is timed apart.
"""

import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
from absl import flags

from experiments.timing import random_variables, time_calls
from resnest_jax import commands, create_model, fold

MODEL = flags.DEFINE_string("model", "resnest50", "Name of the model.")
IMAGE_SIZE = flags.DEFINE_integer("image_size", 224, "Side of the images.", lower_bound=32)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 8, "Images a call.", lower_bound=1)
REPEATS = flags.DEFINE_integer("repeats", 10, "Rounds that are timed.", lower_bound=2)
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Dtype of activations.")


def rivals(model, images: jax.Array) -> dict[str, tuple]:
    """Name -> (module, variables): the first is what the others are compared with."""
    variables = random_variables(model, images)
    return {"as trained": (model, variables), "folded": fold(model, variables)}


def compile_all(modules: dict[str, tuple], images: jax.Array) -> dict[str, tuple[Callable, float]]:
    """Name -> (a call that waits for its result, seconds that compiling took)."""
    compiled = {}
    for name, (module, variables) in modules.items():
        begun = time.perf_counter()
        program = jax.jit(module.apply).lower(variables, images).compile()
        seconds = time.perf_counter() - begun

        def call(program=program, variables=variables):
            return program(variables, images).block_until_ready()

        compiled[name] = call, seconds
    return compiled


def table(seconds: dict[str, list[float]], compiling: dict[str, float], images: int) -> str:
    """Images a second with their spread, ratio to the first rival, compile time."""
    lines = [
        "| | images/s | quartiles | times the first | quartiles | compile s |",
        "|---|---|---|---|---|---|",
    ]
    first = next(iter(seconds.values()))
    for name, times in seconds.items():
        rate = statistics.quantiles([images / t for t in times], n=4, method="inclusive")
        ratios = [a / b for a, b in zip(first, times, strict=True)]
        ratio = statistics.quantiles(ratios, n=4, method="inclusive")
        lines.append(
            f"| {name} | {rate[1]:.2f} | {rate[0]:.2f} - {rate[2]:.2f} "
            f"| {ratio[1]:.3f} | {ratio[0]:.3f} - {ratio[2]:.3f} | {compiling[name]:.1f} |"
        )
    return "\n".join(lines)


def main(_: list[str]) -> None:
    """Time the rivals that the flags name."""
    model = create_model(MODEL.value, dtype=jnp.dtype(DTYPE.value))
    shape = (BATCH_SIZE.value, IMAGE_SIZE.value, IMAGE_SIZE.value, 3)
    images = jax.random.normal(jax.random.key(1), shape)
    compiled = compile_all(rivals(model, images), images)
    seconds = time_calls({name: call for name, (call, _) in compiled.items()}, REPEATS.value)
    print(f"{MODEL.value}, images {shape}, {DTYPE.value}, {jax.devices()[0].device_kind}")
    print(table(seconds, {name: s for name, (_, s) in compiled.items()}, BATCH_SIZE.value))


if __name__ == "__main__":
    commands.run(main)
