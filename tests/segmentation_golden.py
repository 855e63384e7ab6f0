"""The goldens of segmentation: outputs of the authors' code on weights and inputs by formula."""

import json

import golden
import numpy as np

import resnest_jax

FOLDER = golden.FOLDER / "segmentation"
ARRAYS = np.load(FOLDER / "goldens.npz")
HEADS = {"deeplab": "deeplabv3", "fcn": "fcn"}


def cases(kind: str) -> dict[str, dict]:
    """Return the cases of a kind by id."""
    stored = json.loads((FOLDER / "goldens.json").read_text())
    return {case["id"]: case for case in stored if case["kind"] == kind}


def build(case: dict, **fields) -> tuple:
    """Return the model of a case and its golden variables."""
    model = resnest_jax.create_model(
        HEADS[case["head"]],
        backbone=case["backbone"],
        num_classes=case["nclass"],
        auxiliary=case.get("aux", False),
        **fields,
    )
    return model, resnest_jax.from_torch(golden.state_dict(model), model)


def images(case: dict, offset: int = 0) -> np.ndarray:
    """Return the normalised images of a case."""
    return golden.images((case["n"], case["h"], case["w"]), case["seed"] + offset)


def labels(case: dict, offset: int = 0) -> np.ndarray:
    """Return the labels of a case, uint8, 255 where there is none."""
    n, h, w = case["n"], case["h"], case["w"]
    random = np.random.RandomState(case["seed"] + offset + 1000)
    label = blocks(random, -1, case["nclass"], (n, h, w), 8)
    label[0, : h // 2] = -1
    return np.where(label < 0, 255, label).astype(np.uint8)


def blocks(
    random: np.random.RandomState, low: int, high: int, shape: tuple[int, int, int], side: int
) -> np.ndarray:
    """Return random integers (n, h, w), equal in squares."""
    n, h, w = shape
    cells = random.randint(low, high, (n, -(-h // side), -(-w // side)))
    return cells.repeat(side, 1).repeat(side, 2)[:, :h, :w]
