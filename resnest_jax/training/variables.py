"""Write and read variables alone, without a run."""

from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from resnest_jax.errors import InputError


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
