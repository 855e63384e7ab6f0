"""Weights of classes in the loss."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from resnest_jax.errors import InputError

BALANCED = ("balanced",)


def class_weights(
    given: Sequence[Any], class_names: Sequence[str], counts: Callable[[], np.ndarray], of: str
) -> tuple[float, ...]:
    """Return the weight of every class, or nothing if none is given.

    Args:
      given: ``("balanced",)``, or pairs of a class name and a weight; other classes have weight 1.
      counts: returns the number of training examples of each class, int (classes,); only
        ``balanced`` calls it, since it may read all labels.
      of: the examples, in words.

    Raises:
      InputError: if ``given`` is neither, names an unknown class, or is ``balanced`` and a class
        has no examples.
    """
    if not given:
        return ()
    if tuple(given) == BALANCED:
        return _balanced(counts(), class_names, of)
    return _named(given, class_names)


def _balanced(counts: np.ndarray, class_names: Sequence[str], of: str) -> tuple[float, ...]:
    """Return weights in inverse proportion to the examples: their mean over the examples is 1."""
    empty = [name for name, count in zip(class_names, counts, strict=True) if not count]
    if empty:
        raise InputError(
            f"loss.class_weights 'balanced' needs training {of} of every class; there are none "
            f"of {', '.join(empty[:10])}{', ...' if len(empty) > 10 else ''}"
        )
    return tuple((counts.sum() / (len(counts) * counts)).tolist())


def _named(given: Sequence[Any], class_names: Sequence[str]) -> tuple[float, ...]:
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
                    "loss.class_weights must be 'balanced', or pairs of a class and a weight, "
                    f"positive and finite, such as (('dog', 2.0),); got {pair!r}"
                )
    return tuple(weights.values())
