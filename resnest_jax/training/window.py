"""Metrics between two lines of the log, and their rate."""

import math
import time
from collections.abc import Callable
from functools import reduce

import jax
import jax.numpy as jnp
import numpy as np

from resnest_jax.errors import DivergenceError
from resnest_jax.training.run import Run
from resnest_jax.training.task import Metrics, PyTree


class Window:
    """Metrics since the last line; read one step late, to keep the device busy.

    Args:
      values: metrics of the steps before, if the run was resumed between two lines.
      diverged: makes the error of a step, from the values that are not finite.
    """

    def __init__(
        self,
        run: Run,
        values: list[dict[str, float]],
        diverged: Callable[[int, dict[str, float]], DivergenceError],
    ):
        self._run, self._diverged = run, diverged
        self._pending: tuple[int, Metrics] | None = None
        self._values = values
        self._timed = 0
        self.restart_clock()

    def epoch(self, step: int) -> float:
        """Return the epochs after a step."""
        return round(step / self._run.options.steps_per_epoch, 4)

    def restart_clock(self) -> None:
        """Count time and images from now on."""
        self._timed = 0
        self._begun = time.perf_counter()

    def forget_time(self) -> None:
        """Wait for the steps so far, and leave them out of the rate."""
        self._read()
        self.restart_clock()

    def add(self, step: int, metrics: Metrics) -> None:
        """Add the metrics of a step, which may still be computed."""
        self._read()
        self._pending = (step, metrics)

    def snapshot(self) -> list[dict[str, float]]:
        """Return all metrics since the last line, for a run that resumes here."""
        self._read()
        return list(self._values)  # it is written in the background

    def close(self, step: int) -> tuple[dict[str, float], float]:
        """Return the means since the last call and the images per second."""
        self._read()
        values = {name: np.mean([v[name] for v in self._values]) for name in self._values[0]}
        seconds = time.perf_counter() - self._begun
        rate = self._timed * self._run.options.batch_size / seconds if self._timed else math.nan
        self._values = []
        self.restart_clock()
        # The learning rate of the last of these steps.
        learning_rate = float(jax.device_get(self._run.schedule(step - 1)))
        values = {name: float(value) for name, value in values.items()}
        return {"epoch": self.epoch(step), **values, "learning_rate": learning_rate}, rate

    def check_statistics(self, step: int, batch_stats: PyTree) -> None:
        """Raise DivergenceError if running statistics, which no loss uses, are not finite."""
        self._read()  # a loss that is not finite says more
        if bool(jax.device_get(_all_finite(batch_stats))):
            return
        leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(batch_stats))
        path, leaf = next((path, leaf) for path, leaf in leaves if not np.isfinite(leaf).all())
        name = "/".join(part.key for part in path)
        raise self._diverged(step, {f"batch_stats/{name}": leaf[~np.isfinite(leaf)][0]})

    def _read(self) -> None:
        if self._pending is None:
            return
        step, metrics = self._pending
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if bad := {name: value for name, value in values.items() if not math.isfinite(value)}:
            raise self._diverged(step, bad)
        self._values.append(values)
        self._timed += 1
        self._pending = None


@jax.jit
def _all_finite(tree: PyTree) -> jax.Array:
    finite = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]
    return reduce(jnp.logical_and, finite, jnp.array(True))
