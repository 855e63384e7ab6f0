"""The goldens of detection: what the authors' fork of detectron2 computes."""

import json

import golden
import numpy as np

FOLDER = golden.FOLDER / "detection"
OPS = np.load(FOLDER / "ops.npz")
OPTIONS = json.loads((FOLDER / "ops.json").read_text())


def ops(prefix: str) -> dict[str, np.ndarray]:
    """Return the arrays of an operation by the rest of their names."""
    names = [name for name in OPS.files if name.startswith(f"{prefix}/")]
    return {name.removeprefix(f"{prefix}/"): OPS[name] for name in names}
