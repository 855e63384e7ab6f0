"""Time models: random weights, and calls in turns."""

import os
import time
from collections.abc import Callable

import jax
import numpy as np

WARM_UP = 2  # rounds that are not timed
SHOW_SECONDS = 5.0  # between lines of progress
# Of this process; others than Linux do not tell.
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def random_variables(model, images: jax.Array) -> dict:
    """Draw variables at the scale of a trained model: no zeros, statistics unlike initial ones."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        noise = rng.standard_normal(leaf.shape, np.float32)
        if leaf.ndim > 1:
            return noise * np.sqrt(2 / np.prod(leaf.shape[:-1]), dtype=np.float32)
        if path[-1].key in ("scale", "var"):
            # The last norm of a block is small; else the sum over the blocks overflows.
            return np.exp(0.1 * noise) * (0.1 if path[-2].key == "bn3" else 1)
        return 0.1 * noise

    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    return jax.device_put(jax.tree_util.tree_map_with_path(draw, shapes))


def time_calls(calls: dict[str, Callable], repeats: int) -> dict[str, list[float]]:
    """Return the seconds of each call per round; the order is reversed from round to round."""
    seconds = {name: [] for name in calls}
    names = list(calls)
    shown = time.perf_counter()
    for i in range(WARM_UP + repeats):
        for name in names if i % 2 else names[::-1]:
            begun = time.perf_counter()
            calls[name]()
            elapsed = time.perf_counter() - begun
            if i >= WARM_UP:
                seconds[name].append(elapsed)
        if time.perf_counter() - shown > SHOW_SECONDS:
            print(f"round {i + 1} of {WARM_UP + repeats} is timed", flush=True)
            shown = time.perf_counter()
    return seconds
