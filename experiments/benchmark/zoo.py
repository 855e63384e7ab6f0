"""Measured speed and published accuracy of the models of the zoo, and timm's EfficientNets."""

import statistics

import jax

from experiments.benchmark import ours
from experiments.timing import time_calls
from resnest_jax.models.zoo import MODELS, create_model

# Name in timm -> test size in pixels and the top-1 accuracy there, results-imagenet.csv of timm.
EFFICIENTNETS = {"efficientnet_b0": (224, 77.694), "efficientnet_b2": (288, 80.610)}


def rows(images: jax.Array, repeats: int, torch: bool) -> list[dict]:
    """A row a model: inference with folded norms at the size of its accuracy, model by model."""
    table = []
    for name, model in MODELS.items():
        if model.top1 is not None:
            size = (images.shape[0], model.test_crop, model.test_crop, 3)
            program = ours.inference(create_model(name), jax.random.normal(jax.random.key(1), size))
            table.append(_row(name, program["folded"], size, model.top1, repeats))
    return table + (_efficientnets(images.shape[0], repeats) if torch else [])


def _row(name: str, program: ours.Program, size: tuple, top1: float, repeats: int) -> dict:
    seconds = statistics.median(time_calls({name: program.call}, repeats)[name])
    return {"": name, "size": size[1], "images/s": round(size[0] / seconds, 2), "top-1": top1}


def _efficientnets(batch_size: int, repeats: int) -> list[dict]:
    try:
        from experiments.benchmark import pytorch
    except ImportError as error:
        print(f"without PyTorch's rows: {error}")
        return []
    table = []
    for name, (crop, top1) in EFFICIENTNETS.items():
        size = (batch_size, crop, crop, 3)
        images = jax.random.normal(jax.random.key(1), size)
        program = pytorch.eager(name, images)
        table.append(_row(f"timm {name}", program, size, top1, repeats))
    return table
