"""Checkpoints of a run in ``DIR/checkpoints``: the best and the last, written asynchronously."""

import contextlib
import functools
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from resnest_jax.errors import InputError, PreemptedError, StorageError, one_line
from resnest_jax.training.checksums import FILE as CHECKSUMS
from resnest_jax.training.checksums import find_damage, write_checksums
from resnest_jax.training.distributed import agree, is_main, main_first
from resnest_jax.training.metric_writer import METRICS
from resnest_jax.training.state import TrainState

FOLDER = "checkpoints"


@functools.cache
def _write_arrays_whole() -> None:
    """Make Orbax write each array from one replica, everywhere.

    If every replica wrote a part, Orbax would compile a slice per array. This takes seconds at the
    first save and does not help networks of this size.
    """
    handler = ocp.type_handlers.ArrayHandler(use_replica_parallel=False)
    ocp.type_handlers.register_type_handler(jax.Array, handler, override=True)


class Checkpoints:
    """Context manager of the checkpoints; its exit waits for the last write.

    ``read_only``: read while a run may be writing; leave unfinished checkpoints alone.
    """

    def __init__(self, workdir: Path, *, keep_last: int, best_metric: str, read_only: bool = False):
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
        self._workdir = workdir
        self._manager = ocp.CheckpointManager(workdir.resolve() / FOLDER, options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
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
            state=ocp.args.StandardSave(state), progress=ocp.args.JsonSave(loop_state)
        )
        step = int(jax.device_get(state.step))
        with self._storage_errors():
            self._manager.save(step, args=args, metrics=metrics, force=True)

    def check(self) -> None:
        """Raise StorageError if writing in the background has failed."""
        with self._storage_errors():
            self._manager.check_for_errors()

    @contextlib.contextmanager
    def _storage_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Orbax's storage layers raise many kinds
            raise StorageError(
                f"a checkpoint cannot be written to {self._manager.directory}: {error}; the last "
                f"complete one is of step {latest_step(self._workdir)}"
            ) from error

    def _seal(self) -> None:
        """Write the checksums of a checkpoint that is complete, before Orbax gives it its name."""
        if is_main():
            for folder in Path(self._manager.directory).iterdir():
                if folder.is_dir() and not (folder / CHECKSUMS).exists():
                    write_checksums(folder)

    def any(self) -> bool:
        """Return whether there is a checkpoint."""
        return self._manager.latest_step() is not None

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
            damage = find_damage(Path(self._manager.directory) / str(step))
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
        if damage := agree(find_damage(folder)):
            raise StorageError(f"checkpoint {folder} is damaged: {damage}")
        args = ocp.args.Composite(
            state=ocp.args.StandardRestore(jax.tree.map(ocp.utils.to_shape_dtype_struct, state)),
            progress=ocp.args.JsonRestore(),
        )
        try:
            restored = self._manager.restore(step, args=args)
        except Exception as error:  # Orbax raises many kinds here too
            raise StorageError(f"checkpoint {folder} cannot be read: {one_line(error)}") from error
        return restored["state"], restored["progress"]

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
                folder.rename(folder.with_name(f"{step}.{why}-{time.strftime('%Y%m%d-%H%M%S')}"))
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
    return workdir / FOLDER / str(step) / "state"


def save_variables(folder: Path, variables: dict) -> None:
    """Write only ``{"params", "batch_stats"}``."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder.resolve(), variables)


def restore_variables(folder: Path) -> dict:
    """Read ``{"params", "batch_stats"}`` from a folder, as NumPy arrays.

    From the state of a run, reads the moving average if there is one, and nothing else, so that
    neither data set nor optimiser is needed.

    Raises:
      InputError: if the folder does not hold them.
    """
    folder = folder.resolve()
    with ocp.PyTreeCheckpointer() as checkpointer:
        try:
            stored = checkpointer.metadata(folder).item_metadata.tree
            averaged = bool(stored.get("ema"))
            source = stored["ema"] if averaged else stored
            wanted = {name: source[name] for name in ("params", "batch_stats")}
        except (AttributeError, KeyError, FileNotFoundError):
            raise InputError(f"{folder} holds no params and batch_stats") from None
        wanted = {"ema": wanted} if averaged else wanted
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
        args = ocp.args.PyTreeRestore(wanted, restore_args=as_numpy, partial_restore=True)
        restored = checkpointer.restore(folder, args=args)
        return restored["ema"] if averaged else restored
