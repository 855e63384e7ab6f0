"""Classify image files."""

import importlib.resources
import sys
from collections.abc import Callable, Sequence
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import numpy as np
import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from resnest_jax.data.crops import test_crop
from resnest_jax.data.decode import decode
from resnest_jax.data.sources import open_dataset
from resnest_jax.errors import InputError
from resnest_jax.models.inputs import normalize
from resnest_jax.models.resnest import ResNeSt
from resnest_jax.models.zoo import MODELS
from resnest_jax.tasks.classification.explain import Explanation, draw, explain
from resnest_jax.weights.formats import describe_directory
from resnest_jax.weights.pretrained import load_pretrained
from resnest_jax.workdir import CONFIG, load_config

BATCH = 8
TOP = 5
MAX_ROWS = 100  # per picture; with more it is unreadable
DEFAULT_SIZE = 224  # the test crop of every fast model, published or not
FIRST_SYNSET = "n01440764"  # the tench, if ImageNet's classes have WordNet's names


class Predictor(NamedTuple):
    """A model, its test transform of uint8 RGB (H, W, 3), and its class names."""

    model: ResNeSt
    variables: dict[str, Any]
    transform: Callable[[np.ndarray], np.ndarray]
    class_names: Sequence[str]


def run(
    files: Sequence[str],
    *,
    name: str | None = None,
    weights: str | None = None,
    image_size: int | None = None,
    explain_path: str | None = None,
) -> int:
    """Print the best classes of each image, and unreadable files on stderr.

    Args:
      files: images, and folders of images.
      name, weights, image_size: see ``load``.
      explain_path: PNG to write, with one row per image.

    Returns:
      The exit code: 1 if any file could not be read, else 0.

    Raises:
      InputError: if there are no images, too many for a picture, or ``load`` raises it.
    """
    paths = find_images(files)
    if explain_path and len(paths) > MAX_ROWS:
        raise InputError(
            f"explain draws one row per image, at most {MAX_ROWS}; got {len(paths)} images"
        )
    model, variables, transform, class_names = load(name, weights, image_size)
    rows: list[tuple[Path, np.ndarray, Explanation]] = []
    failed = False
    for start in range(0, len(paths), BATCH):
        images, errors = read_images(paths[start : start + BATCH], transform)
        for error in errors:
            print(f"error: {error}", file=sys.stderr, flush=True)
        failed |= bool(errors)
        if not images:
            continue
        batch = _pad(list(images.values()), min(BATCH, len(paths)))
        if explain_path:
            explanations = _unbatch(explain(model, variables, batch))
            rows += zip(images, images.values(), explanations, strict=False)
            probabilities = [np.asarray(result.probabilities) for result in explanations]
        else:
            probabilities = np.asarray(predict(model, variables, batch))
        for path, row in zip(images, probabilities, strict=False):
            print(format_table(path, row, class_names), flush=True)
    if rows and explain_path:
        shown, images, explanations = zip(*rows, strict=True)
        titles = [path.name for path in shown]
        draw(Path(explain_path).expanduser(), titles, images, explanations, class_names)
    return int(failed)


@partial(jax.jit, static_argnums=0)
def predict(model: ResNeSt, variables: dict[str, Any], images: jax.Array) -> jax.Array:
    """Return probabilities (B, num_classes), float32, of RGB images (B, H, W, 3) in 0..255."""
    return jax.nn.softmax(cast(jax.Array, model.apply(variables, normalize(images))))


def load(name: str | None, weights: str | None, image_size: int | None) -> Predictor:
    """Load a model with its weights, test transform and class names.

    Args:
      name: name of the model; None for a directory, which holds it.
      weights: a .safetensors or .pth file, or the directory of a run or of weights; None is the
        published weights.
      image_size: side of the network's input; None: that of the published test, or of the run.

    Raises:
      InputError: if the model or file does not exist, or neither argument names a model.
    """
    workdir = Path(weights or "").expanduser()
    if weights and (workdir / CONFIG).is_file():
        config = load_config(workdir)
        model, variables = load_pretrained(name or config.model.name, source=weights)
        size = image_size or config.eval_image_size
        transform = partial(test_crop, size=size, rule=config.eval_crop)
        return Predictor(model, variables, transform, _run_classes(config, model.num_classes))
    if not name and not weights:
        raise InputError(
            "model is missing: give a name, such as --model=resnest50, or a directory of weights"
        )
    if not name and workdir.is_dir():
        name = describe_directory(workdir)[0]["name"]
    model, variables = load_pretrained(name, source=weights)
    size = image_size or (MODELS[name].test_crop if name in MODELS else DEFAULT_SIZE)
    names = imagenet_classes() if model.num_classes == 1000 else _numbers(model.num_classes)
    return Predictor(model, variables, partial(test_crop, size=size, rule="authors"), names)


def imagenet_classes() -> list[str]:
    """Return names of ImageNet's 1,000 classes, in the order of every published model."""
    file = importlib.resources.files("resnest_jax.data") / "imagenet_classes.txt"
    return file.read_text(encoding="utf-8").splitlines()


def _run_classes(config: ConfigDict, num_classes: int) -> Sequence[str]:
    """Return class names of the run's data set, or numbers if it is not on this machine."""
    try:
        if config.dataset.startswith("folder:"):
            splits = {"train_split": config.train_split, "eval_split": config.eval_split}
            names = open_dataset(config.dataset, **splits).class_names
        else:  # only the description: class names are not worth a download
            features: Any = tfds.builder(config.dataset).info.features
            names = features["label"].names
    except (InputError, ImportError, ValueError, AssertionError, tfds.core.DatasetNotFoundError):
        return _numbers(num_classes)
    if len(names) != num_classes:  # the folder has changed
        return _numbers(num_classes)
    return imagenet_classes() if num_classes == 1000 and names[0] == FIRST_SYNSET else names


def _numbers(count: int) -> list[str]:
    return [f"class {i}" for i in range(count)]


def find_images(files: Sequence[str]) -> list[Path]:
    """List the given files, and the visible files in given folders, sorted, without subfolders.

    Raises:
      InputError: if there are none, or a folder cannot be read.
    """
    if not files:
        raise InputError("no images are given; expected IMAGE_OR_FOLDER... as arguments")
    paths: list[Path] = []
    for path in (Path(file).expanduser() for file in files):
        if not path.is_dir():
            paths.append(path)
            continue
        try:
            found = [p for p in path.iterdir() if p.is_file() and not p.name.startswith(".")]
        except OSError as error:
            raise InputError(f"cannot read the folder {path}: {error.strerror}") from None
        if not found:
            raise InputError(f"the folder {path} holds no files; give one with images in it")
        paths += sorted(found)
    return list(dict.fromkeys(paths))


def read_images(
    paths: Sequence[Path], transform: Callable[[np.ndarray], np.ndarray]
) -> tuple[dict[Path, np.ndarray], list[InputError]]:
    """Return transformed images by path, and the errors of the others."""
    images: dict[Path, np.ndarray] = {}
    errors: list[InputError] = []
    for path in paths:
        try:
            images[path] = transform(read_image(path))
        except InputError as error:
            errors.append(error)
    return images, errors


def read_image(path: Path) -> np.ndarray:
    """Read a file as uint8 RGB (H, W, 3), as ``data.decode.decode`` does in training.

    Raises:
      InputError: if it is not a whole image.
    """
    try:
        encoded = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read the image {path}: {error.strerror}") from None
    return decode({"image": encoded, "key": path})


def _pad(images: list[np.ndarray], count: int) -> np.ndarray:
    """Stack images and pad the batch with black to ``count``: one shape, one compilation."""
    return np.stack(images + [np.zeros_like(images[0])] * (count - len(images)))


def _unbatch(batch: Explanation) -> list[Explanation]:
    batch = jax.device_get(batch)
    return [jax.tree.map(itemgetter(i), batch) for i in range(len(batch.cam))]


def format_table(path: Path, probabilities: np.ndarray, class_names: Sequence[str]) -> str:
    """Format the path and best classes of one image, one class per line."""
    best = np.argsort(-probabilities, kind="stable")[:TOP]
    return "\n".join(
        [str(path), *(f"{100 * probabilities[i]:7.2f} %  {class_names[i]}" for i in best)]
    )
