"""Weights of classes in the loss, by the names of the classes."""

import math
from collections.abc import Sequence
from typing import Any

from resnest_jax.errors import InputError


def named_weights(
    given: Sequence[Any], class_names: Sequence[str], expected: str = "pairs"
) -> tuple[float, ...]:
    """Return the weight of every class, or nothing if none is given.

    Args:
      given: pairs of a class name and a weight; other classes have weight 1.
      expected: what the config key may be, for the error.

    Raises:
      InputError: if it is something else, or names an unknown class.
    """
    if not given:
        return ()
    weights = dict.fromkeys(class_names, 1.0)
    for pair in given:
        match pair:
            case [str(name), int(weight) | float(weight)] if 0 < weight < math.inf:
                if name not in weights:
                    raise InputError(
                        f"loss.class_weights has the class {name!r}; the data set has "
                        f"{', '.join(class_names[:10])}{', ...' if len(class_names) > 10 else ''}"
                    )
                weights[name] = float(weight)
            case _:
                raise InputError(
                    f"loss.class_weights must be {expected} of a class and a weight, "
                    f"positive and finite, such as (('dog', 2.0),); got {pair!r}"
                )
    return tuple(weights.values())
