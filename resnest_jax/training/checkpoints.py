"""Checkpoints of a run in DIR/checkpoints: the best and the last few, written asynchronously."""

from pathlib import Path

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from resnest_jax.errors import InputError
from resnest_jax.training.state import TrainState

FOLDER = "checkpoints"


class Checkpoints:
    """A context manager: leaving it waits for the last write."""

    def __init__(self, workdir: Path, *, keep_last: int, best_metric: str):
        if keep_last < 1:
            raise InputError(f"checkpoint.keep_last must be at least 1; got {keep_last}")

        def metric(metrics: dict[str, float]) -> float:
            return metrics[best_metric]

        policies = [
            checkpoint_managers.LatestN(keep_last),
            checkpoint_managers.BestN(get_metric_fn=metric, n=1),
        ]
        options = ocp.CheckpointManagerOptions(
            best_fn=metric,  # without it the metrics are not stored
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
            cleanup_tmp_directories=True,
        )
        self._manager = ocp.CheckpointManager(workdir.resolve() / FOLDER, options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self._manager.close()

    def save(self, state: TrainState, metrics: dict[str, float], seconds: float) -> None:
        """Write the state, with the metrics it reached and the seconds it took, at its step."""
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state), progress=ocp.args.JsonSave({"seconds": seconds})
        )
        self._manager.save(int(state.step), args=args, metrics=metrics)

    def restore(self, state: TrainState, which: str = "last") -> tuple[TrainState, float]:
        """The stored state, laid out like ``state``, and its seconds of training.

        Args:
          which: ``last``, ``best`` or a step; ``last`` without any checkpoint gives ``state``.

        Raises:
          InputError: if there is no such checkpoint.
        """
        steps = sorted(self._manager.all_steps())
        if which == "last" and not steps:
            return state, 0.0
        step = self._find(which, steps)
        if step not in steps:
            raise InputError(f"no checkpoint {which!r} in {self._manager.directory}; {steps=}")
        args = ocp.args.Composite(
            state=ocp.args.StandardRestore(jax.tree.map(ocp.utils.to_shape_dtype_struct, state)),
            progress=ocp.args.JsonRestore(),
        )
        restored = self._manager.restore(step, args=args)
        return restored.state, restored.progress["seconds"]

    def _find(self, which: str, steps: list[int]) -> int | None:
        if which == "last":
            return max(steps)
        if which == "best":
            return self._manager.best_step()
        return int(which) if which.isdecimal() else None


def latest_step(workdir: Path) -> int | None:
    """Step of the last whole checkpoint, None without one."""
    folder = workdir.resolve() / FOLDER
    if not folder.is_dir():
        return None
    steps = ocp.utils.checkpoint_steps(folder)
    return max(steps, default=None)
