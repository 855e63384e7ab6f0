"""Which task the weights that a command is given are for."""

from resnest_jax.errors import InputError
from resnest_jax.files import local_path
from resnest_jax.weights import detection, segmentation
from resnest_jax.weights.card import read_model
from resnest_jax.weights.detectron import PREDICTOR
from resnest_jax.weights.formats import describe_directory, read_file, task_of
from resnest_jax.weights.segmenter import BACKBONE

LOADERS = {"segmentation": segmentation.load_weights, "detection": detection.load_weights}


def find_task(name: str | None, weights: str | None) -> str:
    """Return the task of a model, seen from its name or from its weights.

    Raises:
      InputError: if the weights are broken.
    """
    if name is not None:
        return task_of({"name": name})
    path = None if weights is None else local_path("weights", weights)
    if path is None or not path.exists():
        return "classification"
    if path.is_dir():
        return task_of(describe_directory(path)[0])
    if description := read_model(path):
        return task_of(description)
    keys = read_file(path)
    if any(PREDICTOR in key for key in keys):
        return "detection"
    return "segmentation" if any(BACKBONE in key for key in keys) else "classification"


def refuse_backbone(backbone: str | None) -> None:
    """Raise InputError if a backbone is named, of a classifier."""
    if backbone is not None:
        raise InputError(
            f"backbone {backbone}: only a model of segmentation or detection has one; leave it out"
        )
