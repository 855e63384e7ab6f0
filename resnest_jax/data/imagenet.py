"""ImageNet's 1,000 classes: WordNet's synsets, and names to read."""

import functools
import importlib.resources
from collections.abc import Sequence


@functools.cache
def _names() -> dict[str, str]:
    """Return name by synset, in the order of every published model."""
    file = importlib.resources.files("resnest_jax.data") / "imagenet_classes.txt"
    lines = file.read_text(encoding="utf-8").splitlines()
    return {synset: name for synset, _, name in (line.partition(" ") for line in lines)}


def synsets() -> tuple[str, ...]:
    """Return the synsets, n01440764 first, in the order of every published model."""
    return tuple(_names())


def imagenet_classes() -> list[str]:
    """Return the names, in the order of the synsets."""
    return list(_names().values())


def readable(class_names: Sequence[str]) -> list[str]:
    """Replace synsets of ImageNet by their names."""
    return [_names().get(name, name) for name in class_names]
