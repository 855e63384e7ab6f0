"""Checkpoints of a run in ``DIR/checkpoints``: the best and the last, written asynchronously."""

import contextlib
import functools
import json
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from resnest_jax.errors import InputError, PreemptedError, StorageError, one_line
from resnest_jax.files import make_folder, put_aside
from resnest_jax.training.checksums import FILE as CHECKSUMS
from resnest_jax.training.checksums import find_damage, write_checksums
from resnest_jax.training.distributed import agree, is_main, main_first
from resnest_jax.training.metric_writer import METRICS
from resnest_jax.training.state import TrainState

FOLDER = "checkpoints"
STATE = "state"  # folder in each checkpoint
CONFIG = "config"  # its copy in the JSON of each checkpoint
GONE = (
    "workdir {} was deleted or moved while the run wrote into it; resume where it is now, or start "
    "again with the same command"
)


@functools.cache
def _write_arrays_whole() -> None:
    """Make Orbax write each array from one replica, everywhere.

    If every replica wrote a part, Orbax would compile a slice per array. This takes seconds at the
    first save and does not help networks of this size.
    """
    handler = ocp.type_handlers.ArrayHandler(use_replica_parallel=False)
    ocp.type_handlers.register_type_handler(jax.Array, handler, override=True)


class _Manager(ocp.CheckpointManager):
    """Orbax's manager, for which damaged metrics of a checkpoint are as none."""

    def __init__(self, folder: Path, options: ocp.CheckpointManagerOptions, best_metric: str):
        self._best_metric = best_metric  # first, because the other line reads metrics
        super().__init__(folder, options=options)

    def metrics(self, step: int) -> dict[str, float] | None:
        try:
            found = super().metrics(step)
        except (OSError, ValueError):
            return None
        best = found.get(self._best_metric) if isinstance(found, dict) else None
        return found if isinstance(best, int | float) else None


class Checkpoints:
    """Context manager of the checkpoints; its exit waits for the last write.

    Args:
      config: JSON that every checkpoint holds, for ``stored_config``.
      read_only: read while a run may be writing; leave unfinished checkpoints alone.
    """

    def __init__(
        self,
        workdir: Path,
        *,
        keep_last: int,
        best_metric: str,
        config: dict[str, Any] | None = None,
        read_only: bool = False,
    ):
        if keep_last < 1:
            raise InputError(f"checkpoint.keep_last must be at least 1; got {keep_last}")

        def metric(metrics: dict[str, float]) -> float:
            return metrics[best_metric]

        policies = [
            checkpoint_managers.LatestN(keep_last),
            checkpoint_managers.BestN(
                get_metric_fn=metric, n=1, keep_checkpoints_without_metrics=False
            ),
        ]
        _write_arrays_whole()
        background = ocp.AsyncOptions(post_finalization_callback=self._seal)
        options = ocp.CheckpointManagerOptions(
            best_fn=metric,  # without it the metrics are not stored
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
            cleanup_tmp_directories=not read_only,
            read_only=read_only,
            async_options=None if read_only else background,
        )
        self._read_only = read_only
        self._workdir, self._config = workdir, config
        folder = workdir.resolve() / FOLDER
        if not read_only and is_main():
            make_folder("workdir", folder)
        self._manager = _Manager(folder, options, best_metric)
        # Orbax would make a new workdir, in which nothing else is; an open one keeps its number.
        self._opened = None if read_only else os.open(workdir, os.O_RDONLY)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._opened is not None:
            os.close(self._opened)
        stored = kind is None or issubclass(kind, PreemptedError)  # else that error is raised
        with self._storage_errors() if stored else contextlib.suppress(Exception):
            self._manager.close()

    def save(self, state: TrainState, metrics: dict[str, float] | None, loop_state: dict) -> None:
        """Begin to write the state at its step, with the metrics of its evaluation, if any.

        Args:
          loop_state: JSON that ``restore`` returns.

        Raises:
          StorageError: if this save or the one before it failed.
        """
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            progress=ocp.args.JsonSave(loop_state | {CONFIG: self._config}),
        )
        step = int(jax.device_get(state.step))
        if not self._is_in_place():
            raise StorageError(GONE.format(self._workdir))
        with self._storage_errors():
            self._manager.save(step, args=args, metrics=metrics, force=True)

    def _is_in_place(self) -> bool:
        """Return whether the path is still that of the opened directory."""
        if self._opened is None or not self._workdir.is_dir():
            return False
        return os.path.samestat(os.fstat(self._opened), self._workdir.stat())

    def check(self) -> None:
        """Raise StorageError if writing in the background has failed."""
        with self._storage_errors():
            self._manager.check_for_errors()

    @contextlib.contextmanager
    def _storage_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Orbax's storage layers raise many kinds
            last = latest_step(self._workdir)
            left = "there is no complete one" if last is None else f"the last one is of step {last}"
            raise StorageError(
                f"a checkpoint cannot be written to {self._manager.directory}: {one_line(error)}; "
                f"{left}; fix this and run the same command again"
            ) from error

    def _seal(self) -> None:
        """Write the checksums of a checkpoint that is complete, before Orbax gives it its name."""
        if is_main():
            for folder in Path(self._manager.directory).iterdir():
                if folder.is_dir() and not (folder / CHECKSUMS).exists():
                    write_checksums(folder)

    def steps(self) -> list[int]:
        """Return the steps of all checkpoints, sorted, after the last write has ended."""
        with contextlib.suppress(Exception):  # which ``check`` raises
            self._manager.wait_until_finished()
        return stored_steps(self._workdir)

    def any(self) -> bool:
        """Return whether there is a checkpoint."""
        return self._manager.latest_step() is not None

    def evaluations(self) -> dict[int, dict[str, float]]:
        """Return the metrics of the evaluated checkpoints, by step."""
        found = {step: self._manager.metrics(step) for step in self._manager.all_steps()}
        return {step: metrics for step, metrics in found.items() if metrics}

    def restore(self, state: TrainState, which: str = "last") -> tuple[TrainState, dict]:
        """Restore a state, laid out like ``state``, and the loop state saved with it.

        A damaged last checkpoint is named, and the one before it is used; a run that writes puts it
        aside.

        Args:
          state: a state like the stored one, abstract or not.
          which: ``last``, ``best`` or a step.

        Raises:
          InputError: if there is no such checkpoint.
          StorageError: if it cannot be read, or none can.
        """
        steps = self._candidates(which)
        if which != "last":
            return self._restore(state, steps[0])
        for step in steps:
            try:
                return self._restore(state, step)
            except StorageError as error:
                if is_main():
                    print(f"{error}; trying the one before it", flush=True)
                self._put_aside(step, "damaged")
        raise StorageError(
            f"no checkpoint in {self._manager.directory} is complete; delete the folder to start "
            "again"
        )

    def find(self, which: str = "last") -> int:
        """Return the step of a checkpoint whose files are whole.

        Arguments and errors are those of ``restore``.
        """
        steps = self._candidates(which)
        for step in steps:
            damage = self._damage(step)
            if not damage:
                return step
            print(f"checkpoint {step} is damaged: {damage}", file=sys.stderr, flush=True)
        raise StorageError(f"no checkpoint {which!r} in {self._manager.directory} is complete")

    def _candidates(self, which: str) -> list[int]:
        """Return the step that is meant; for the last, all, the last first."""
        steps = sorted(self._manager.all_steps())
        step = self._find(which, steps)
        if step not in steps:
            raise InputError(
                f"no checkpoint {which!r} in {self._manager.directory}; there are steps {steps!r}"
            )
        return steps[::-1] if which == "last" else [step]

    def _restore(self, state: TrainState, step: int) -> tuple[TrainState, dict]:
        folder = Path(self._manager.directory) / str(step)
        if damage := agree(self._damage(step)):
            raise StorageError(f"checkpoint {folder} is damaged: {damage}")
        self._check_shapes(state, step)
        args = ocp.args.Composite(
            state=ocp.args.StandardRestore(jax.tree.map(ocp.utils.to_shape_dtype_struct, state)),
            progress=ocp.args.JsonRestore(),
        )
        try:
            restored = self._manager.restore(step, args=args)
        except Exception as error:  # Orbax raises many kinds here too
            raise StorageError(f"checkpoint {folder} cannot be read: {one_line(error)}") from error
        return restored["state"], restored["progress"]

    def _damage(self, step: int) -> str | None:
        """Return what is wrong with the files of a checkpoint, or None."""
        folder = Path(self._manager.directory) / str(step)
        return find_damage(folder) or (None if (folder / STATE).is_dir() else "it has no state")

    def _check_shapes(self, state: TrainState, step: int) -> None:
        """Raise InputError if a checkpoint that can be read has arrays of other shapes."""
        try:
            with ocp.PyTreeCheckpointer() as checkpointer:
                folder = Path(self._manager.directory) / str(step) / STATE
                stored = jax.tree.leaves(checkpointer.metadata(folder).item_metadata.tree)
        except Exception:  # the restoring that follows says what is wrong
            return
        shapes = [
            Counter(tuple(leaf.shape) for leaf in leaves if hasattr(leaf, "shape"))
            for leaves in (stored, jax.tree.leaves(state))
        ]
        if shapes[0] != shapes[1]:
            raise InputError(
                f"checkpoint {step} in {self._manager.directory} is of another model or optimizer; "
                "use the --config of the run"
            )

    def go_back(self, step: int) -> None:
        """Put aside all checkpoints after a step, see ``check_step``, and a copy of the metrics."""
        steps = sorted(self._manager.all_steps())
        metrics = self._workdir / METRICS
        if is_main() and metrics.exists():
            now = time.strftime("%Y%m%d-%H%M%S")
            shutil.copy2(metrics, metrics.with_name(f"metrics-before-{now}.jsonl"))
        for later in steps[steps.index(step) + 1 :]:
            self._put_aside(later, "replaced")

    def _put_aside(self, step: int, why: str) -> None:
        """Rename a checkpoint, so that its step can be saved again."""
        if self._read_only:
            return
        with main_first():
            folder = Path(self._manager.directory) / str(step)
            if is_main():
                put_aside(folder, why)
        self._manager.reload()

    def _find(self, which: str, steps: list[int]) -> int | None:
        if which == "last":
            return max(steps, default=None)
        if which == "best":
            return self._manager.best_step()
        return int(which) if which.isdecimal() else None


def stored_steps(workdir: Path) -> list[int]:
    """Return the steps of the complete checkpoints, sorted."""
    folder = workdir.resolve() / FOLDER
    return sorted(ocp.utils.checkpoint_steps(folder)) if folder.is_dir() else []


def latest_step(workdir: Path) -> int | None:
    """Return the step of the last complete checkpoint, or None."""
    return max(stored_steps(workdir), default=None)


def stored_config(workdir: Path) -> dict[str, Any] | None:
    """Return the config in the last whole checkpoint that holds one, or None."""
    for step in reversed(stored_steps(workdir)):
        folder = workdir / FOLDER / str(step)
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            config = json.loads((folder / "progress" / "metadata").read_text())[CONFIG]
            if config and not find_damage(folder):
                return config
    return None


def check_step(workdir: Path, step: int) -> None:
    """Raise InputError if there is no checkpoint of the step to go back to."""
    if step not in (steps := stored_steps(workdir)):
        raise InputError(f"--from_step: no checkpoint of step {step}; there are {steps}")


def find_step(workdir: Path, which: str, best_metric: str) -> int:
    """Return the step of a checkpoint of a run: ``last``, ``best`` or a step.

    Raises:
      InputError: if there is no such checkpoint; the message names those that exist.
      StorageError: if it is damaged. Of the last, the one before it is taken.
    """
    if latest_step(workdir) is None:
        raise InputError(f"workdir {workdir} holds no checkpoint yet")
    checkpoints = Checkpoints(workdir, keep_last=1, best_metric=best_metric, read_only=True)
    with checkpoints:
        return checkpoints.find(which)


def state_folder(workdir: Path, step: int) -> Path:
    """Return the folder of the state of a checkpoint."""
    return workdir / FOLDER / str(step) / STATE
