"""A network on a backbone with what it takes to use it, in a directory of a run or of weights."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from resnest_jax.errors import InputError
from resnest_jax.files import local_path
from resnest_jax.models.zoo import create_model
from resnest_jax.weights.card import Card, read_card
from resnest_jax.weights.formats import describe_directory, restore_directory, task_of
from resnest_jax.weights.pretrained import check_name

if TYPE_CHECKING:  # importing the models needs no configs
    from ml_collections import ConfigDict


@dataclasses.dataclass(frozen=True)
class Network:
    """A network for another task than classification, and what is known of it.

    Attributes:
      path: file or directory of its weights.
      config: of the run; of other weights the defaults, with what the weights say.
      variables: ``{"params", "batch_stats"}``.
      card: names and colours of the classes, as far as they are known.
      step: of a run that of the checkpoint; else None.
    """

    path: Path
    config: "ConfigDict"
    variables: dict[str, Any]
    card: Card
    step: int | None = None

    @property
    def num_classes(self) -> int:
        """Number of classes of the variables."""
        raise NotImplementedError

    @property
    def description(self) -> dict[str, Any]:
        """Name and fields of the model, ``num_classes`` included."""
        from resnest_jax.config import model_fields

        return model_fields(self.config) | {"num_classes": self.num_classes}

    @property
    def model(self) -> Any:
        """The network."""
        return create_model(**self.description)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes; of unknown ones numbers."""
        numbers = range(self.num_classes)
        return self.card.class_names or tuple(f"class {number}" for number in numbers)

    @property
    def about(self) -> str:
        """The model in words."""
        fields = self.description
        text = f"{fields['name']} on {fields['backbone']}, {fields['num_classes']} classes"
        return f"{text}, auxiliary head" if fields.get("auxiliary") else text

    def checked(self) -> Self:
        """Return the network itself.

        Raises:
          InputError: if the number of its classes is not that of the stored names.
        """
        names = self.card.class_names
        if names is not None and len(names) != self.num_classes:
            raise InputError(
                f"weights {self.path} have {self.num_classes} classes, but {len(names)} names of "
                "classes are stored with them"
            )
        return self


class Stored(NamedTuple):
    """What a directory holds: the fields of ``Network`` after the path."""

    config: "ConfigDict"
    variables: dict[str, Any]
    card: Card
    step: int | None


def existing(weights: str) -> Path:
    """Return the path of weights.

    Raises:
      InputError: if it is not local or does not exist.
    """
    path = local_path("weights", weights)
    if not path.exists():
        raise InputError(f"weights {path}: no such file or directory")
    return path


def read_directory(
    path: Path, task: str, name: str | None, checkpoint: str, backbone: str | None
) -> Stored:
    """Read the directory of a run or of weights of a task.

    Args:
      name: expected name of the model; None: any of the task.
      checkpoint: of a run, ``last``, ``best`` or a step.
      backbone: expected name of the backbone; None: any.

    Raises:
      InputError: if it holds something else, or no such checkpoint.
    """
    from resnest_jax.workdir import load_config

    description, is_run = describe_directory(path)
    check_described(path, description, task, name, backbone)
    step, variables = restore_directory(path, is_run, checkpoint)
    card = read_card(path)
    config = load_config(path) if is_run else config_of(task, description, card)
    return Stored(config, variables, card, step)


def check_described(
    path: Path, description: dict[str, Any], task: str, name: str | None, backbone: str | None
) -> None:
    """Raise InputError if weights that describe their model are of another one."""
    check_name(name, path, description)
    if task_of(description) != task:
        raise InputError(f"weights {path} are of {description['name']}, not of {task}")
    if backbone not in (None, description["backbone"]):
        raise InputError(
            f"weights {path} have the backbone {description['backbone']}, not {backbone}"
        )


def config_of(task: str, description: dict[str, Any], card: Card) -> "ConfigDict":
    """Return the config of weights without a run: the defaults, with what is known."""
    from resnest_jax.config import complete

    known = {
        "crop_size": card.image_size,
        "augment.base_size": card.base_size,
        "evaluation.scales": card.scales,
    }
    given = {key: value for key, value in known.items() if value is not None}
    return complete({"task": task, "model": description, **given})
