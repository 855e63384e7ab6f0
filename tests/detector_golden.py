"""The goldens of detection: outputs of the authors' code on weights and images by formula."""

import functools
import gzip
import json

import golden
import jax
import jax.numpy as jnp
import numpy as np

import resnest_jax
from resnest_jax.weights.detectron import ANCHORS, BACKBONE
from resnest_jax.weights.entries import COUNTER

FOLDER = golden.FOLDER / "detection"
MEAN = np.array([123.68, 116.779, 103.939], np.float32)
STD = np.array([58.393, 57.12, 57.375], np.float32)
# Ends of names, and factors that keep proposals usable and separate the scores.
FACTORS = {"rpn_head.anchor_deltas.weight": 0.02, "box_predictor.cls_score.weight": 1.5}
FACTORS |= {f"box_predictor.{stage}.cls_score.weight": 0.4 for stage in range(3)}
MODELS = {
    "faster50": "faster_rcnn",
    "mask50": "mask_rcnn",
    "cascade50": "cascade_rcnn",
    "cascade_mask50": "cascade_mask_rcnn",
}


def arrays(name: str) -> dict[str, np.ndarray]:
    """Return the stored arrays of a kind."""
    with np.load(FOLDER / f"{name}.npz") as file:
        return dict(file)


def load(name: str):
    """Return the description of a kind."""
    path = FOLDER / name
    return json.loads(
        gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_text()
    )


@functools.cache
def build(name: str) -> tuple:
    """Return a model on ResNeSt-50 and its golden variables."""
    model = resnest_jax.create_model(MODELS[name], backbone="resnest50")
    return model, resnest_jax.from_torch(state_dict(model), model)


def state_dict(model) -> dict[str, np.ndarray]:
    """Return a state dictionary with the goldens' weights."""
    init = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), init)
    empty = resnest_jax.to_torch(zeros, model)
    kept = {key: value for key, value in empty.items() if COUNTER not in key and ANCHORS not in key}
    return {key: _weight(key, value.shape) for key, value in kept.items()}


def _weight(key: str, shape: tuple[int, ...]) -> np.ndarray:
    value = golden.weight(key, shape)
    if key.startswith(BACKBONE) and key.endswith("conv3.norm.weight"):
        return value * np.float32(0.1)
    factor = next((factor for end, factor in FACTORS.items() if key.endswith(end)), 1)
    return value * np.float32(factor)


def normal(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Return random numbers, float32."""
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


def image(seed: int, height: int, width: int) -> np.ndarray:
    """Return an image (H, W, 3) uint8."""
    random = np.random.RandomState(seed)
    cells = random.randint(0, 256, (-(-height // 16), -(-width // 16), 3))
    pixels = cells.repeat(16, 0).repeat(16, 1)[:height, :width]
    return np.clip(pixels + random.randint(-20, 21, pixels.shape), 0, 255).astype(np.uint8)


def batch(images: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return normalised images (B, H, W, 3), padded with zeros to multiples of 32, and sizes."""
    sizes = np.array([image.shape[:2] for image in images])
    height, width = -(-sizes.max(0) // 32) * 32
    canvas = np.zeros((len(images), height, width, 3), np.float32)
    for place, image in zip(canvas, images, strict=True):
        place[: image.shape[0], : image.shape[1]] = (image - MEAN) / STD
    return canvas, sizes
