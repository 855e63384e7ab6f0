"""A network with what it takes to use it: class names, and the size and crop of test images."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from resnest_jax.data.imagenet import synsets
from resnest_jax.errors import InputError
from resnest_jax.files import local_path
from resnest_jax.models.resnest import ResNeSt
from resnest_jax.models.zoo import MODELS
from resnest_jax.weights.card import Card, read_card
from resnest_jax.weights.formats import (
    check_classifier,
    check_no_checkpoint,
    describe_directory,
    find_checkpoint,
)
from resnest_jax.weights.pretrained import describe_file, load_pretrained
from resnest_jax.weights.published import check_published, fetch

if TYPE_CHECKING:  # importing the models needs no configs
    from ml_collections import ConfigDict

PUBLISHED = "published"  # in place of a path
DEFAULT_SIZE = 224  # the test crop of every fast model, published or not
DEFAULT_CROP = "authors"


class Source(NamedTuple):
    """Weights that are to be read.

    Attributes:
      name: name of the model.
      path: file or directory.
      card: what is known of them.
      step, config: of a run the step of the checkpoint and the config; else None.
    """

    name: str
    path: Path
    card: Card
    step: int | None = None
    config: "ConfigDict | None" = None

    @property
    def image_size(self) -> int:
        """Side of the test images."""
        return self.card.image_size or DEFAULT_SIZE

    @property
    def crop(self) -> str:
        """Rule of their crop."""
        return self.card.crop or DEFAULT_CROP

    @property
    def multi_label(self) -> bool:
        """Whether an image has any number of the classes."""
        return self.config is not None and self.config.multi_label

    @property
    def checkpoint(self) -> str:
        """The checkpoint, for ``load_pretrained``."""
        return "last" if self.step is None else str(self.step)


class Classifier(NamedTuple):
    """A network, its variables, and where they are from."""

    model: ResNeSt
    variables: dict[str, Any]
    source: Source


def find_source(name: str | None, weights: str | None, checkpoint: str = "last") -> Source:
    """Find weights, without reading them.

    Args:
      name: name of the model; None if the weights hold it, as a directory does.
      weights: a file of weights, or the directory of a run or of weights; None or ``published``
        are the published ones, which are downloaded.
      checkpoint: of a run, ``last``, ``best`` or a step.

    Raises:
      InputError: if the model, the file or the checkpoint does not exist, or no model is named.
    """
    if weights is None or weights == PUBLISHED:
        check_no_checkpoint(PUBLISHED, checkpoint)
        if name is None:
            raise InputError(
                "model is missing: give a name, such as --model=resnest50, or a directory of "
                "weights"
            )
        return Source(name, fetch(name), _published_card(name))
    path = local_path("weights", weights)
    if not path.exists():
        raise InputError(f"weights {path}: no such file or directory")
    if path.is_dir():
        description, is_run = describe_directory(path)
        check_classifier(path, description)
        name = name or str(description["name"])
        if is_run:
            return _run_source(name, path, checkpoint)
    else:
        name = str(describe_file(name, path)["name"])
    check_no_checkpoint(path, checkpoint)
    if path.is_file() and check_published(name, path):
        return Source(name, path, _published_card(name))
    card = read_card(path)
    return Source(name, path, card._replace(image_size=card.image_size or _test_size(name)))


def load_classifier(source: Source, **fields: Any) -> Classifier:
    """Load the network of a source.

    Args:
      **fields: fields of ``ResNeSt`` that override those of the source.

    Raises:
      InputError: as ``load_pretrained``, or if there are more or fewer class names than classes.
    """
    model, variables = load_pretrained(
        source.name, source.path, checkpoint=source.checkpoint, **fields
    )
    names = source.card.class_names
    if names is not None and len(names) != model.num_classes:
        raise InputError(
            f"weights {source.path} have {model.num_classes} classes, but {len(names)} names of "
            "classes are stored with them"
        )
    return Classifier(model, variables, source)


def _published_card(name: str) -> Card:
    return Card(synsets(), _test_size(name), DEFAULT_CROP)


def _run_source(name: str, workdir: Path, checkpoint: str) -> Source:
    from resnest_jax.workdir import load_config

    config = load_config(workdir)
    card = Card(read_card(workdir).class_names, config.eval_image_size, config.eval_crop)
    return Source(name, workdir, card, find_checkpoint(workdir, checkpoint), config)


def _test_size(name: str) -> int:
    return MODELS[name].test_crop if name in MODELS else DEFAULT_SIZE
