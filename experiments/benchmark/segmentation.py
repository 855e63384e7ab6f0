"""Our programs of DeepLabV3, and PyTorch's of the same network with the same weights."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmark import ours, torch_process
from experiments.benchmark.ours import Program
from experiments.timing import random_variables
from resnest_jax.models.zoo import create_model
from resnest_jax.tasks.segmentation.sliding import SCALES, MultiScale
from resnest_jax.tasks.segmentation.task import Segmentation
from resnest_jax.weights.torch_names import to_torch

NUM_CLASSES = 150
BASE_PER_CROP = 520 / 480  # the authors' longer side at scale 1, by the side of their windows


def make_model(backbone: str, dtype: str):
    """Return the network: output stride 8, an auxiliary head, 150 classes."""
    return create_model(
        "deeplabv3",
        backbone=backbone,
        num_classes=NUM_CLASSES,
        output_stride=8,
        auxiliary=True,
        dtype=jnp.dtype(dtype),
    )


def programs(backbone: str, model, images: jax.Array, kind: str, torch: bool) -> dict[str, Program]:
    """Return name -> program: ours, and those of PyTorch, whose results are compared with ours.

    Args:
      images: (B, S, S, 3); of ``multi_scale`` S is the side of the windows and B of them are a
        batch.
      kind: ``inference``, ``training`` or ``multi_scale``.
    """
    variables = random_variables(model, images)
    labels, settings = None, {}
    if kind == "multi_scale":
        base = round(images.shape[1] * BASE_PER_CROP)
        settings = {"base_size": base, "crop_size": images.shape[1], "scales": SCALES}
        settings["batch_size"] = len(images)
        images = jax.random.normal(jax.random.key(1), (1, base * 3 // 4, base, 3))
        made, expected = _multi_scale(model, variables, images, settings)
    elif kind == "training":
        stripes = (np.arange(images.shape[1]) % model.num_classes).astype(np.uint8)
        labels = np.array(np.broadcast_to(stripes[:, None], images.shape[:3]))
        made = _training(model, variables, images, labels)
        expected = jax.jit(model.apply)(variables, images)
    else:
        made = ours.inference(model, variables, images)
        expected = made["as trained"].call()
    if not torch:
        return made
    return made | torch_process.programs(
        "programs",
        "torch_segmentation",
        name=backbone,
        kind=kind,
        state=to_torch(variables, model),
        images=np.asarray(images),
        expected=np.asarray(expected),
        labels=labels,
        **settings,
    )


def _training(model, variables: dict, images: jax.Array, labels: np.ndarray) -> dict[str, Program]:
    task = Segmentation(model, images.shape[1], tuple(map(str, range(model.num_classes))))
    batch = {"image": images, "labels": jnp.asarray(labels)}
    return {"as trained": ours.train_step(task, batch, variables)}


def _multi_scale(
    model, variables: dict, images: jax.Array, settings: dict
) -> tuple[dict[str, Program], np.ndarray]:
    """Return the program, and its classes (h, w)."""
    apply = jax.jit(model.apply)
    evaluator = MultiScale(lambda windows: apply(variables, windows), **settings)

    def call() -> np.ndarray:
        return next(iter(evaluator.predict([np.asarray(images[0])]))).labels

    return {"as trained": Program(call)}, call()
