"""Checks of config keys that several tasks have."""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from resnest_jax.config import model_fields
from resnest_jax.errors import InputError
from resnest_jax.files import local_path
from resnest_jax.models.zoo import create_model
from resnest_jax.training.checkpoints import latest_step
from resnest_jax.weights.published import SOURCES


def check_choice(field: str, value: str | int, choices: tuple[str | int, ...]) -> None:
    """Raise InputError if the value is not one of the choices."""
    if value not in choices:
        raise InputError(f"{field} must be one of {choices}; got {value!r}")


def check_parallel_and_pretrained(config: ConfigDict, network: str) -> None:
    """Raise InputError if ``parallel.batch_norm`` or a key of ``pretrained`` is out of range.

    Args:
      network: name of the model whose published weights the run may start from.
    """
    check_choice("parallel.batch_norm", config.parallel.batch_norm, ("global", "device"))
    check_choice("pretrained.train", config.pretrained.train, ("all", "head"))
    if config.pretrained.train == "head" and config.model.norm != "frozen":
        raise InputError("pretrained.train 'head' needs model.norm 'frozen'")
    weights, checkpoint = config.pretrained.weights, config.pretrained.checkpoint
    if checkpoint != "last" and weights in ("none", "published"):
        raise InputError(
            f"pretrained.checkpoint {checkpoint!r} needs a run as pretrained.weights; got "
            f"{weights!r}"
        )
    if weights == "published" and network not in SOURCES:
        raise InputError(
            f"pretrained.weights 'published': there are none of {network}; there are of "
            f"{', '.join(SOURCES)}"
        )
    if weights not in ("none", "published"):
        local_path("pretrained.weights", weights)


def check_source(config: ConfigDict, workdir: Path | None) -> None:
    """Raise InputError if a run that starts needs weights of a path that does not exist.

    A run that is resumed does not read them.
    """
    weights = config.pretrained.weights
    starts = workdir is not None and latest_step(workdir) is None
    if starts and weights not in ("none", "published"):
        path = local_path("pretrained.weights", weights)
        if not path.exists():
            raise InputError(f"pretrained.weights: there is no {path.absolute()}")


def check_model(config: ConfigDict) -> None:
    """Raise InputError if the model cannot be trained, or a field of it is out of range."""
    if config.model.norm == "folded":
        raise InputError("model.norm 'folded' is not for training; use 'batch' or 'frozen'")
    create_model(**model_fields(config))
    if config.model.dtype == "float16":
        raise InputError(
            "model.dtype float16 is not for training, whose small gradients it rounds to 0; use "
            "bfloat16 or float32"
        )


def network_fields(config: ConfigDict, num_classes: int) -> dict[str, Any]:
    """Return the arguments of ``create_model`` for a data set's number of classes.

    Raises:
      InputError: if the config has another number.
    """
    fields = model_fields(config)
    if fields.setdefault("num_classes", num_classes) != num_classes:
        raise InputError(
            f"model.num_classes is {fields['num_classes']}, but {config.dataset} has "
            f"{num_classes} classes; leave it out"
        )
    return fields
