"""Check the numbers of weights."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from resnest_jax.errors import InputError


def check_numbers(arrays: Mapping[str, Any], source: str) -> None:
    """Raise InputError for the first array that has another dtype than a float, NaN or infinity.

    XLA's maximum on CPU answers 0 for NaN, so that a ReLU can hide it.
    """
    for name, array in arrays.items():
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise InputError(
                f"{source}: {name} is of dtype {array.dtype}; weights must be floats, quantised "
                "ones converted back"
            )
        if bad := array.size - int(np.isfinite(np.asarray(array)).sum()):
            raise InputError(
                f"{source}: {name} has {bad} of {array.size} values that are NaN or infinite; the "
                "weights are damaged, or training diverged"
            )
