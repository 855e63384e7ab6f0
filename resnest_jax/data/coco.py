"""COCO's 80 classes of objects."""

import importlib.resources


def coco_classes() -> tuple[str, ...]:
    """Return the names in the order of the ids of their categories."""
    file = importlib.resources.files("resnest_jax.data") / "coco_classes.txt"
    return tuple(file.read_text(encoding="utf-8").splitlines())
