"""The goldens: weights and images by formula, and outputs of the authors' model."""

import pathlib
import zlib

import jax
import jax.numpy as jnp
import numpy as np

import resnest_jax
from resnest_jax.weights.torch_names import COUNTER

FOLDER = pathlib.Path(__file__).parent / "goldens"
FILE = np.load(FOLDER / "official.npz")
MORE = np.load(FOLDER / "more.npz")  # only logits, by case

# id: model, fields, (n, h, w), seed of the images
CASES = {
    "resnest14@64": ("resnest14", {}, (2, 64, 64), 1),
    "resnest50@64": ("resnest50", {}, (2, 64, 64), 2),
    "resnest50@97x65": ("resnest50", {}, (2, 97, 65), 3),
    "resnest50_fast_2s2x40d@65": ("resnest50_fast_2s2x40d", {}, (2, 65, 65), 4),
    "resnest50_fast_4s1x64d@64": ("resnest50_fast_4s1x64d", {}, (2, 64, 64), 5),
    "resnest50_fast_1s4x24d@64": ("resnest50_fast_1s4x24d", {}, (2, 64, 64), 6),
    "resnest50_os8@65": ("resnest50", {"output_stride": 8}, (2, 65, 65), 7),
    "resnetd50@64": ("resnetd50", {}, (2, 64, 64), 8),
    "resnet50@64": ("resnet50", {}, (2, 64, 64), 9),
}
# id: model, (n, h, w), seed of the images
MORE_CASES = {
    "seresnet50@65x64": ("seresnet50", (2, 65, 64), 24),
    "skresnet50@65x64": ("skresnet50", (2, 65, 64), 25),
    "resnext50_32x4d@64x65": ("resnext50_32x4d", (2, 64, 65), 26),
    "resnetd101@64x65": ("resnetd101", (2, 64, 65), 27),
    "resnest50_fast_2s4x24d@65x64": ("resnest50_fast_2s4x24d", (2, 65, 64), 28),
    "resnest50_fast_4s4x24d@64x99": ("resnest50_fast_4s4x24d", (2, 64, 99), 29),
}
SLOW_CASES = {
    "resnest101@65x97": ("resnest101", (2, 65, 97), 21),
    "resnest200@96x64": ("resnest200", (1, 96, 64), 22),
    "resnest269@65x65": ("resnest269", (1, 65, 65), 23),
}
TRAIN_CASE = ("resnest14_train@64", ("resnest14", {}, (4, 64, 64), 10))


def golden(case: str, name: str) -> np.ndarray:
    """Return a stored array."""
    return FILE[f"{case}/{name}"]


def images(shape: tuple[int, int, int], seed: int) -> np.ndarray:
    """Return the images of a case, (n, h, w, 3) float32."""
    return np.random.RandomState(seed).standard_normal((*shape, 3)).astype(np.float32)


def state_dict(model) -> dict[str, np.ndarray]:
    """Return a torch state dictionary with the goldens' weights, drawn key by key."""
    init = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), init)
    empty = resnest_jax.to_torch(zeros, model)
    return {key: weight(key, value.shape) for key, value in empty.items() if COUNTER not in key}


def weight(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return the weights of an entry."""
    rng = np.random.RandomState(zlib.crc32(key.encode()))
    n = rng.standard_normal(shape).astype(np.float32)
    if len(shape) == 4:
        return n * np.float32(np.sqrt(2 / np.prod(shape[1:])))
    if len(shape) == 2:
        return n / np.float32(np.sqrt(shape[1]))
    if key.endswith("running_var"):
        return np.exp(np.float32(0.1) * n)
    if key.endswith("weight"):
        scale = 1 + np.float32(0.1) * n
        return scale * np.float32(0.1) if ".bn3." in key else scale
    return np.float32(0.1) * n


def build(name: str, fields: dict) -> tuple:
    """Return a model and its golden variables."""
    model = resnest_jax.create_model(name, **fields)
    return model, resnest_jax.from_torch(state_dict(model), model)
