"""A network on a backbone with what it takes to use it, of a run or of other weights."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from resnest_jax.errors import InputError
from resnest_jax.files import local_path
from resnest_jax.models.zoo import create_model
from resnest_jax.weights.card import Card, read_card, read_model
from resnest_jax.weights.formats import (
    StateDict,
    check_no_checkpoint,
    describe_directory,
    read_file,
    restore_directory,
    task_of,
)
from resnest_jax.weights.pretrained import check_name
from resnest_jax.weights.torch_names import from_torch

if TYPE_CHECKING:  # importing the models needs no configs
    from ml_collections import ConfigDict

# Facts of a card that are keys of a config: how the test images are made.
TEST_KEYS = {
    "segmentation": {
        "image_size": "crop_size",
        "base_size": "augment.base_size",
        "scales": "evaluation.scales",
        "flip": "augment.flip",
    },
    "detection": {
        "short_side": "evaluation.short_side",
        "long_side": "evaluation.long_side",
        "view_sides": "evaluation.view_sides",
        "view_long_side": "evaluation.view_long_side",
        "flip": "data.flip",
    },
}


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
    def full_card(self) -> Card:
        """The card, with the test images of the config."""
        from resnest_jax.config import flatten

        values = flatten(self.config)
        keys = TEST_KEYS[self.config.task]
        return self.card._replace(**{field: values[key] for field, key in keys.items()})

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
    """What weights hold: the fields of ``Network``."""

    path: Path
    config: "ConfigDict"
    variables: dict[str, Any]
    card: Card
    step: int | None


class Authors(NamedTuple):
    """How to read the authors' files of a task.

    Attributes:
      task: the task.
      example: name of a file, for an error.
      unwrap: removes what wrappers put before the names of the entries.
      recognise: returns name and fields of the model of a file, from its path, its entries, and
        the name of the backbone or None.
      card: returns what is known of a file.
    """

    task: str
    example: str
    unwrap: Callable[[StateDict], StateDict]
    recognise: Callable[[Path, StateDict, str | None], dict[str, Any]]
    card: Callable[[Path], Card]


def read_stored(
    authors: Authors, name: str | None, weights: str | None, checkpoint: str, backbone: str | None
) -> Stored:
    """Read weights of a task: the directory of a run or of weights, or a file.

    Args:
      name: expected name of the model; None: any of the task.
      weights: the path.
      checkpoint: of a run, ``last``, ``best`` or a step.
      backbone: expected name of the backbone; None: any.

    Raises:
      InputError: if it does not exist, is damaged or holds something else, or no such checkpoint.
    """
    if weights is None or weights == "published":
        raise InputError(
            f"weights of {name} cannot be fetched: give the file, such as "
            f"--weights={authors.example}"
        )
    path = local_path("weights", weights)
    if not path.exists():
        raise InputError(f"weights {path}: no such file or directory")
    if path.is_dir():
        return _read_directory(path, authors.task, name, checkpoint, backbone)
    return _read_file(authors, path, name, checkpoint, backbone)


def _read_directory(
    path: Path, task: str, name: str | None, checkpoint: str, backbone: str | None
) -> Stored:
    from resnest_jax.workdir import load_config

    description, is_run = describe_directory(path)
    _check_described(path, description, task, name, backbone)
    step, variables = restore_directory(path, is_run, checkpoint)
    card = read_card(path)
    config = load_config(path) if is_run else _config_of(task, description, card)
    return Stored(path, config, variables, card, step)


def _read_file(
    authors: Authors, path: Path, name: str | None, checkpoint: str, backbone: str | None
) -> Stored:
    check_no_checkpoint(path, checkpoint)
    description = read_model(path)
    if description:
        _check_described(path, description, authors.task, name, backbone)
    card = authors.card(path)
    state_dict = authors.unwrap(read_file(path))
    description = description or authors.recognise(path, state_dict, backbone)
    check_name(name, path, description)
    variables = from_torch(state_dict, create_model(**description))
    return Stored(path, _config_of(authors.task, description, card), variables, card, None)


def _check_described(
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


def _config_of(task: str, description: dict[str, Any], card: Card) -> "ConfigDict":
    """Return the config of weights without a run: the defaults, with what is known."""
    from resnest_jax.config import complete

    known = {key: getattr(card, field) for field, key in TEST_KEYS[task].items()}
    given = {key: value for key, value in known.items() if value is not None}
    return complete({"task": task, "model": description, **given})
