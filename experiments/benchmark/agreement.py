"""Programs that are compared must have the same results."""

import numpy as np

from resnest_jax.errors import InputError

TOLERANCES = {"float32": 1e-3, "bfloat16": 3e-2}  # of the largest value


def check(what: str, found: np.ndarray, expected: np.ndarray, dtype: str = "float32") -> None:
    """Compare a result with ours; ``what`` names it in the message.

    Raises:
      InputError: if the shapes or values differ, with the largest difference.
    """
    if found.shape != expected.shape:
        raise InputError(f"{what} has the shape {found.shape}, ours {expected.shape}")
    error = np.abs(found - expected).max() / np.abs(expected).max()
    if not error <= TOLERANCES[dtype]:
        raise InputError(
            f"{what} differs from ours by {error:.1e} of the largest value, "
            f"more than {TOLERANCES[dtype]:.0e}"
        )
