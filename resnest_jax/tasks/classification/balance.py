"""Weights of classes in the loss."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from resnest_jax.errors import InputError
from resnest_jax.tasks.class_weights import named_weights

BALANCED = ("balanced",)


def class_weights(
    given: Sequence[Any], class_names: Sequence[str], labels: Callable[[], np.ndarray]
) -> tuple[float, ...]:
    """Return the weight of every class, or nothing if none is given.

    Args:
      given: ``("balanced",)``, or pairs of a class name and a weight; other classes have weight 1.
      labels: reads the training labels, see ``Records.labels``; only ``balanced`` calls it.

    Raises:
      InputError: if ``given`` is neither, names an unknown class, or is ``balanced`` and a class
        has no images.
    """
    if tuple(given) == BALANCED:
        return _balanced(labels(), class_names)
    return named_weights(given, class_names, expected="'balanced', or pairs")


def _balanced(labels: np.ndarray, class_names: Sequence[str]) -> tuple[float, ...]:
    """Return weights in inverse proportion to the images: their mean over the images is 1."""
    several = labels.ndim == 2
    counts = labels.sum(0) if several else np.bincount(labels, minlength=len(class_names))
    empty = [name for name, count in zip(class_names, counts, strict=True) if not count]
    if empty:
        raise InputError(
            "loss.class_weights 'balanced' needs training images of every class; there are none "
            f"of {', '.join(empty[:10])}{', ...' if len(empty) > 10 else ''}"
        )
    return tuple((counts.sum() / (len(counts) * counts)).tolist())
