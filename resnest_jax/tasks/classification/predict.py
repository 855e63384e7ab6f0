"""Classify image files."""

import io
import sys
from collections.abc import Sequence
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from resnest_jax.data.imagenet import readable
from resnest_jax.data.sources import open_dataset
from resnest_jax.errors import InputError
from resnest_jax.files import write_atomic, writing
from resnest_jax.models.inputs import STATISTICS, input_channels, normalize
from resnest_jax.models.resnest import ResNeSt
from resnest_jax.tasks.classification.explain import Explanation, draw, explain
from resnest_jax.tasks.classification.report import (
    Prediction,
    check_predictions,
    write_predictions,
)
from resnest_jax.tasks.classification.task import apply_model
from resnest_jax.tasks.classification.transforms import EvalTransform
from resnest_jax.tasks.classification.views import Views, view_logits, view_transform
from resnest_jax.tasks.photos import find_images, read_image
from resnest_jax.training.task import Batch
from resnest_jax.weights.classifier import find_source, load_classifier

BATCH = 8
TOP = 5
THRESHOLD = 0.5
MAX_ROWS = 100  # per picture; with more it is unreadable


class Predictor(NamedTuple):
    """A model, its test transform, see ``views.view_transform``, and its class names.

    ``multi_label`` says that an image has any number of these classes.
    """

    model: ResNeSt
    variables: dict[str, Any]
    transform: EvalTransform | Views
    class_names: Sequence[str]
    multi_label: bool = False


class Outputs(NamedTuple):
    """Files to write; None: not written.

    Attributes:
      explain: PNG with one row per image.
      predictions: .csv or .json with one line per image.
      embeddings: .npz with ``files`` (N,) and ``embeddings`` (N, features): the pooled features,
        before the head.
    """

    explain: Path | None = None
    predictions: Path | None = None
    embeddings: Path | None = None


NO_OUTPUTS = Outputs()


class Result(NamedTuple):
    """What the network says of one image, and what of it the outputs need."""

    prediction: Prediction
    image: np.ndarray | None = None
    explanation: Explanation | None = None
    embedding: np.ndarray | None = None


def run(
    files: Sequence[str],
    *,
    name: str | None = None,
    weights: str | None = None,
    checkpoint: str = "last",
    sizes: tuple[int, ...] | None = None,
    tta: tuple[str, ...] = (),
    outputs: Outputs = NO_OUTPUTS,
    threshold: float = THRESHOLD,
) -> int:
    """Print the best classes of each image, and unreadable files on stderr.

    If an image has any number of classes, they are those that are at least as probable as
    ``threshold``.

    Args:
      files: images, and folders of images.
      name, weights, checkpoint, sizes, tta: see ``load``.
      outputs: files to write.

    Returns:
      The exit code: 1 if any file could not be read, else 0.

    Raises:
      InputError: if there are no images, too many for a picture, or ``load`` raises it.
    """
    paths = find_images(files)
    _check(outputs, paths)
    predictor = load(name, weights, checkpoint, sizes, tta)
    if isinstance(predictor.transform, Views) and (outputs.explain or outputs.embeddings):
        raise InputError("explain and embeddings are of one view; leave out tta and tta_sizes")
    if predictor.multi_label and (isinstance(predictor.transform, Views) or outputs.explain):
        raise InputError("explain, tta and tta_sizes are for runs with one label per image")
    channels = input_channels(predictor.variables)
    if channels not in STATISTICS:
        raise InputError(f"weights of {channels} channels: images have {tuple(STATISTICS)}")
    results: list[Result] = []
    failed = False
    for start in range(0, len(paths), BATCH):
        elements, errors = read_images(paths[start : start + BATCH], predictor.transform, channels)
        for error in errors:
            print(f"error: {error}", file=sys.stderr, flush=True)
        failed |= bool(errors)
        if not elements:
            continue
        found = _apply(predictor, elements, min(BATCH, len(paths)), outputs, threshold)
        for result in found:
            print(format_table(result.prediction, predictor.class_names), flush=True)
        results += found if any(outputs) else []
    if results:
        _write(outputs, results, predictor.class_names)
    return int(failed)


def _check(outputs: Outputs, paths: Sequence[Path]) -> None:
    """Raise InputError for what would fail only after the work."""
    if outputs.explain and len(paths) > MAX_ROWS:
        raise InputError(
            f"explain draws one row per image, at most {MAX_ROWS}; got {len(paths)} images"
        )
    check_predictions(outputs.predictions)
    if outputs.embeddings and outputs.embeddings.suffix != ".npz":
        raise InputError(f"embeddings must end in .npz; got {outputs.embeddings}")


def _apply(
    predictor: Predictor,
    elements: dict[Path, dict[str, np.ndarray]],
    count: int,
    outputs: Outputs,
    threshold: float,
) -> list[Result]:
    """Classify elements, as a batch that is padded to ``count``."""
    model, variables = predictor.model, predictor.variables
    batch = jax.tree.map(lambda *leaves: _pad(leaves, count), *elements.values())
    explanations, embeddings = [None] * count, [None] * count
    if outputs.embeddings:
        embeddings = np.asarray(embed(model, variables, batch["image"]))
    if outputs.explain:
        explanations = _unbatch(explain(model, variables, batch["image"]))
        probabilities = [np.asarray(one.probabilities) for one in explanations]
    else:
        probabilities = np.asarray(predict(model, variables, batch, predictor.multi_label))
    choose = partial(_likely, threshold=threshold) if predictor.multi_label else _best
    return [
        Result(
            _prediction(path, probabilities[row], choose(probabilities[row])),
            element["image"] if outputs.explain else None,
            explanations[row],
            embeddings[row],
        )
        for row, (path, element) in enumerate(elements.items())
    ]


def _best(probabilities: np.ndarray) -> list[int]:
    """Return the best classes, the best first."""
    return np.argsort(-probabilities, kind="stable")[:TOP].tolist()


def _likely(probabilities: np.ndarray, threshold: float) -> list[int]:
    """Return the classes that are at least so probable, the best first."""
    order = np.argsort(-probabilities, kind="stable").tolist()
    return [i for i in order if probabilities[i] >= threshold]


def _prediction(path: Path, probabilities: np.ndarray, chosen: list[int]) -> Prediction:
    return Prediction(str(path), None, chosen, [float(probabilities[i]) for i in chosen])


def _write(outputs: Outputs, results: list[Result], class_names: Sequence[str]) -> None:
    """Write the files that are asked for."""
    predictions, images, explanations, embeddings = zip(*results, strict=True)
    files = [prediction.file for prediction in predictions]
    if outputs.explain:
        titles = [Path(file).name for file in files]
        draw(outputs.explain, titles, images, explanations, class_names)
    if outputs.predictions:
        write_predictions(outputs.predictions, predictions, class_names)
    if outputs.embeddings:
        buffer = io.BytesIO()
        np.savez(buffer, files=files, embeddings=embeddings)
        with writing("embeddings", outputs.embeddings):
            write_atomic(outputs.embeddings, buffer.getbuffer())


@partial(jax.jit, static_argnums=(0, 3))
def predict(
    model: ResNeSt, variables: dict[str, Any], batch: Batch, multi_label: bool = False
) -> jax.Array:
    """Return probabilities (B, num_classes), float32, of a batch of ``views.view_transform``."""
    logits = view_logits(model, variables, batch)
    return jax.nn.sigmoid(logits) if multi_label else jax.nn.softmax(logits)


@partial(jax.jit, static_argnums=0)
def embed(model: ResNeSt, variables: dict[str, Any], images: jax.Array) -> jax.Array:
    """Return the pooled features (B, features), float32, of RGB images (B, H, W, 3) in 0..255."""
    params = {name: value for name, value in variables["params"].items() if name != "head"}
    return apply_model(
        model.clone(num_classes=0), {**variables, "params": params}, normalize(images)
    )


def load(
    name: str | None,
    weights: str | None,
    checkpoint: str = "last",
    sizes: tuple[int, ...] | None = None,
    tta: tuple[str, ...] = (),
) -> Predictor:
    """Load a model with its weights, test transform and class names.

    Args:
      name, weights, checkpoint: see ``find_source``.
      sizes: sides of the network's input, whose results are averaged; None: that of the published
        test, or of the run.
      tta: test-time augmentation, see ``views.Views``.

    Raises:
      InputError: if the model or file does not exist, or neither argument names a model.
    """
    source = find_source(name, weights, checkpoint)
    transform = view_transform(sizes or (source.image_size,), source.crop, tta)
    model, variables, _ = load_classifier(source)
    names = source.card.class_names
    if names is None and source.config is not None:  # of a version that did not store them
        names = _run_classes(source.config, model.num_classes)
    if names is None:
        names = [f"class {i}" for i in range(model.num_classes)]
    return Predictor(model, variables, transform, readable(names), source.multi_label)


def _run_classes(config: ConfigDict, num_classes: int) -> Sequence[str] | None:
    """Return class names of the run's data set, or None if it is not on this machine."""
    try:
        if config.dataset.startswith(("folder:", "csv:")):
            splits = {"train_split": config.train_split, "eval_split": config.eval_split}
            opened = open_dataset(config.dataset, multi_label=config.multi_label, **splits)
            names = opened.class_names
        else:  # only the description: class names are not worth a download
            import tensorflow_datasets as tfds  # slow to import

            features: Any = tfds.builder(config.dataset).info.features
            names = features["label"].names
    except (InputError, ImportError, ValueError, AssertionError, LookupError):
        return None
    return names if len(names) == num_classes else None  # the folder has changed


def read_images(
    paths: Sequence[Path], transform: EvalTransform | Views, channels: int = 3
) -> tuple[dict[Path, dict[str, np.ndarray]], list[InputError]]:
    """Return transformed images by path, and the errors of the others."""
    elements: dict[Path, dict[str, np.ndarray]] = {}
    errors: list[InputError] = []
    for path in paths:
        try:
            elements[path] = transform.map({"image": read_image(path, channels), "label": 0})
        except InputError as error:
            errors.append(error)
    return elements, errors


def _pad(leaves: Sequence[np.ndarray], count: int) -> np.ndarray:
    """Stack and pad the batch with zeros to ``count``: one shape, one compilation."""
    return np.stack([*leaves, *[np.zeros_like(leaves[0])] * (count - len(leaves))])


def _unbatch(batch: Explanation) -> list[Explanation]:
    batch = jax.device_get(batch)
    return [jax.tree.map(itemgetter(i), batch) for i in range(len(batch.cam))]


def format_table(prediction: Prediction, class_names: Sequence[str]) -> str:
    """Format the path and best classes of one image, one class per line."""
    best = zip(prediction.classes, prediction.probabilities, strict=True)
    lines = [f"{100 * probability:7.2f} %  {class_names[index]}" for index, probability in best]
    return "\n".join([prediction.file, *lines])
