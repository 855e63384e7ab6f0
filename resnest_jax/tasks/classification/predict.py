"""From image files to the names of what is on them."""

import importlib.resources
import sys
from collections.abc import Callable, Sequence
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import tensorflow_datasets as tfds
from ml_collections import ConfigDict
from PIL import Image, ImageOps, UnidentifiedImageError

from resnest_jax.data.crops import test_crop
from resnest_jax.data.sources import open_dataset
from resnest_jax.errors import InputError
from resnest_jax.models.resnest import ResNeSt
from resnest_jax.models.zoo import MODELS
from resnest_jax.tasks.classification.explain import Explanation, draw, explain
from resnest_jax.tasks.classification.task import normalize
from resnest_jax.weights.pretrained import describe_directory, load_pretrained
from resnest_jax.workdir import CONFIG, load_config

BATCH = 8
TOP = 5
MAX_ROWS = 100  # of a picture, which could not be looked at if it were longer
DEFAULT_SIZE = 224  # the test crop of every fast model, published or not
FIRST_SYNSET = "n01440764"  # the tench's, where ImageNet's classes are named by WordNet


class Predictor(NamedTuple):
    """A model, what turns uint8 RGB (H, W, 3) into its square input, and its class names."""

    model: ResNeSt
    variables: dict
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
    """Print the best classes of each image; name on stderr what is no image.

    Args:
      files: images, and folders of them.
      name, weights, image_size: see ``load``.
      explain_path: PNG to write, with a row an image.

    Returns:
      The exit code: 1 if any file could not be read, else 0.

    Raises:
      InputError: if there is nothing to do, too much for a picture, or ``load`` does.
    """
    paths = find_images(files)
    if explain_path and len(paths) > MAX_ROWS:
        raise InputError(
            f"explain draws a row an image, at most {MAX_ROWS}; got {len(paths)} images"
        )
    model, variables, transform, class_names = load(name, weights, image_size)
    rows, failed = [], False
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
            probabilities = [explanation.probabilities for explanation in explanations]
        else:
            probabilities = np.asarray(predict(model, variables, batch))
        for path, row in zip(images, probabilities, strict=False):
            print(format_table(path, row, class_names), flush=True)
    if rows:
        shown, images, explanations = zip(*rows, strict=True)
        titles = [path.name for path in shown]
        draw(Path(explain_path).expanduser(), titles, images, explanations, class_names)
    return int(failed)


@partial(jax.jit, static_argnums=0)
def predict(model: ResNeSt, variables: dict, images: jax.Array) -> jax.Array:
    """Probabilities (B, num_classes), float32, of RGB images (B, H, W, 3) in 0..255, any dtype."""
    return jax.nn.softmax(model.apply(variables, normalize(images)))


def load(name: str | None, weights: str | None, image_size: int | None) -> Predictor:
    """A model with its weights, test transform and class names.

    Args:
      name: of the model; a directory knows its own.
      weights: a .safetensors or .pth file, the directory of a run or one that was converted to;
        None is the published ones.
      image_size: side of the network's input; None is that of the published test, or the run's.

    Raises:
      InputError: if there is no such model or file, or neither names a model.
    """
    workdir = Path(weights or "").expanduser()
    if weights and (workdir / CONFIG).is_file():
        config = load_config(workdir)
        model, variables = load_pretrained(name or config.model.name, source=weights)
        size = image_size or config.eval_image_size
        transform = partial(test_crop, size=size, rule=config.eval_crop)
        return Predictor(model, variables, transform, _run_classes(config, model.num_classes))
    if not name and not weights:
        raise InputError("model: name one, such as --model=resnest50, or a directory of weights")
    if not name and workdir.is_dir():
        name = describe_directory(workdir)[0]["name"]
    model, variables = load_pretrained(name, source=weights)
    size = image_size or (MODELS[name].test_crop if name in MODELS else DEFAULT_SIZE)
    names = imagenet_classes() if model.num_classes == 1000 else _numbers(model.num_classes)
    return Predictor(model, variables, partial(test_crop, size=size, rule="authors"), names)


def imagenet_classes() -> list[str]:
    """Readable names of ImageNet's 1,000 classes in the order of every published model."""
    file = importlib.resources.files("resnest_jax.data") / "imagenet_classes.txt"
    return file.read_text(encoding="utf-8").splitlines()


def _run_classes(config: ConfigDict, num_classes: int) -> Sequence[str]:
    """Class names of the run's data set, or numbers where it is not here to ask."""
    try:
        if config.dataset.startswith("folder:"):
            splits = {"train_split": config.train_split, "eval_split": config.eval_split}
            names = open_dataset(config.dataset, **splits).class_names
        else:  # the description alone: nothing is downloaded for the sake of names
            names = tfds.builder(config.dataset).info.features["label"].names
    except (InputError, ImportError, ValueError, AssertionError, tfds.core.DatasetNotFoundError):
        return _numbers(num_classes)
    if len(names) != num_classes:  # the folder is not what it was
        return _numbers(num_classes)
    return imagenet_classes() if num_classes == 1000 and names[0] == FIRST_SYNSET else names


def _numbers(count: int) -> list[str]:
    return [f"class {i}" for i in range(count)]


def find_images(files: Sequence[str]) -> list[Path]:
    """The files named, and the visible files of folders named, sorted, not of their subfolders.

    Raises:
      InputError: if there are none, or a folder cannot be read.
    """
    if not files:
        raise InputError("no image is named; expected IMAGE_OR_FOLDER... as arguments")
    paths = []
    for path in (Path(file).expanduser() for file in files):
        if not path.is_dir():
            paths.append(path)
            continue
        try:
            found = [p for p in path.iterdir() if p.is_file() and not p.name.startswith(".")]
        except OSError as error:
            raise InputError(f"cannot read the folder {path}: {error.strerror}") from None
        if not found:
            raise InputError(f"the folder {path} holds no files; name one with images in it")
        paths += sorted(found)
    return list(dict.fromkeys(paths))


def read_images(
    paths: Sequence[Path], transform: Callable[[np.ndarray], np.ndarray]
) -> tuple[dict[Path, np.ndarray], list[InputError]]:
    """Transformed images by path, and what was wrong with the others."""
    images, errors = {}, []
    for path in paths:
        try:
            images[path] = transform(read_image(path))
        except InputError as error:
            errors.append(error)
    return images, errors


def read_image(path: Path) -> np.ndarray:
    """A file of any kind that Pillow reads as uint8 RGB (H, W, 3), upright.

    The EXIF orientation is applied, alpha is dropped, 16 bits keep the upper 8; of an animation,
    the first frame.

    Raises:
      InputError: if it is no whole image, or has floating-point pixels, whose range is unknown.
    """
    try:
        with Image.open(path) as image:
            return np.asarray(_to_rgb(ImageOps.exif_transpose(image)))
    except UnidentifiedImageError:
        reason = "it is no image"
    except OSError as error:  # that of a missing file, or Pillow's of a broken one
        reason = error.strerror or str(error)
    # The decoders' own of broken files, and Pillow's of absurdly large ones.
    except (ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        reason = str(error)
    raise InputError(f"cannot read the image {path}: {reason}")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("floating-point pixels; expected 8 or 16 bits")
    if image.mode.startswith("I"):  # 16 bits, which Pillow would clip rather than scale
        upper = np.clip(np.asarray(image, np.int64) >> 8, 0, 255)
        image = Image.fromarray(upper.astype(np.uint8))
    if "transparency" in image.info:  # a palette's, which Pillow would warn of
        image = image.convert("RGBA")
    return image.convert("RGB")


def _pad(images: list[np.ndarray], count: int) -> np.ndarray:
    """A batch of ``count``, filled up with black: one shape, one compilation."""
    return np.stack(images + [np.zeros_like(images[0])] * (count - len(images)))


def _unbatch(batch: Explanation) -> list[Explanation]:
    batch = jax.device_get(batch)
    return [jax.tree.map(itemgetter(i), batch) for i in range(len(batch.cam))]


def format_table(path: Path, probabilities: np.ndarray, class_names: Sequence[str]) -> str:
    """The best classes of one image, a line each, under its path."""
    best = np.argsort(-probabilities, kind="stable")[:TOP]
    return "\n".join(
        [str(path), *(f"{100 * probabilities[i]:7.2f} %  {class_names[i]}" for i in best)]
    )
