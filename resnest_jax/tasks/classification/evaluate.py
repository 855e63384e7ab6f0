"""Evaluate a run or any weights on labelled images."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from resnest_jax.data.batches import EvalBatches, LoaderOptions
from resnest_jax.data.decode import decode_image
from resnest_jax.data.imagenet import readable, synsets
from resnest_jax.data.sources import Relabelled, Split, open_dataset, open_split
from resnest_jax.errors import InputError
from resnest_jax.files import make_folder
from resnest_jax.models.inputs import input_channels
from resnest_jax.models.zoo import MODELS
from resnest_jax.tasks.classification import report
from resnest_jax.tasks.classification.multi_label import MultiLabel
from resnest_jax.tasks.classification.task import sum_hits
from resnest_jax.tasks.classification.views import Views, view_logits, view_transform
from resnest_jax.tasks.loading import loader_options
from resnest_jax.tasks.progress import Shown, tell
from resnest_jax.training.distributed import gather_bytes, is_main, main_first
from resnest_jax.training.evaluation import Sums, make_evaluate_variables
from resnest_jax.training.mesh import make_mesh, round_up
from resnest_jax.training.task import Batch, EvalOutput, HostBatch, Variables
from resnest_jax.weights.classifier import Source, find_source, load_classifier

BATCH = 64
BEST = 5


class Options(NamedTuple):
    """How to evaluate; None is what the run or the model's published test does.

    Attributes:
      dataset: name, see ``sources.open_dataset``.
      split: of the data set; ``auto``: of a run that of its evaluation, else see
        ``sources.open_split``.
      sizes: sides of the test images; several are averaged.
      tta: test-time augmentation, see ``views.Views``.
      batch_size: images per step; rounded up to a multiple of the devices.
      output: directory for tables and a picture of the classes.
      predictions: .csv or .json file with a line per image.
    """

    dataset: str | None = None
    split: str = "auto"
    sizes: tuple[int, ...] | None = None
    tta: tuple[str, ...] = ()
    batch_size: int | None = None
    output: Path | None = None
    predictions: Path | None = None


DEFAULTS = Options()


def run(
    name: str | None, weights: str | None, checkpoint: str = "last", options: Options = DEFAULTS
) -> dict[str, Any]:
    """Evaluate weights and return the figures, the same in every process.

    Args:
      name, weights, checkpoint: see ``find_source``.

    Raises:
      InputError: if weights, data or an option cannot be used, or if the classes of the data are
        not classes of the weights.
    """
    report.check_predictions(options.predictions)
    source = find_source(name, weights, checkpoint)
    transform = view_transform(
        options.sizes or (source.image_size,), source.crop, tuple(options.tta)
    )
    multi_label = source.multi_label
    if multi_label and (isinstance(transform, Views) or options.output or options.predictions):
        raise InputError(
            "tta, tta_sizes, output and predictions are for runs with one label per image"
        )
    with main_first():  # it may prepare the data set
        split = _open(source, options)
    if options.output and is_main():  # before the work
        make_folder("output", options.output)
    tell(*split.notes, _describe(source, split, options))
    model, variables, _ = load_classifier(source)
    labels = _match(source, split, model.num_classes)
    if multi_label and list(labels) != list(range(model.num_classes)):
        raise InputError("dataset: with several labels per image it needs the classes of the run")
    batches = EvalBatches(
        split.records if multi_label else Relabelled(split.records, labels),
        transform,
        _loader_options(source, options.batch_size),
        partial(decode_image, channels=input_channels(variables)),
    )
    detailed = bool(options.output or options.predictions)
    details = Details(batches.eval_indices) if detailed else Sums()
    evaluation = Evaluation(model, details, min(BEST, model.num_classes) if detailed else 0)
    if multi_label:
        evaluation = MultiLabel(model, model.num_classes, source.image_size, loss_name="sigmoid")
    evaluate = make_evaluate_variables(evaluation, Shown(batches), make_mesh())
    figures = evaluate(jax.device_get(variables))
    if isinstance(details, Details) and is_main():
        class_names = readable(source.card.class_names or split.class_names)
        _write(details.predictions(split), class_names, options)
    step = {} if source.step is None else {"step": source.step}
    return {"model": source.name, **step, **figures, **_published(source.name, split)}


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Evaluation of a model on batches of ``view_transform``.

    ``best`` is the number of classes to report of each image.
    """

    model: nn.Module
    details: Sums
    best: int = 0

    def eval_step(self, variables: Variables, batch: Batch) -> EvalOutput:
        """Return the sums of ``sum_hits``; of each image the best classes and probabilities."""
        logits = view_logits(self.model, variables, batch)
        sums = sum_hits(logits, batch["label"], batch["valid"])
        if not self.best:
            return EvalOutput(sums)
        return EvalOutput(sums, jax.lax.top_k(nn.softmax(logits), self.best))

    def metric(self) -> Sums:
        """Return the metric."""
        return self.details


class Details(Sums):
    """Means, and the best classes of every image.

    Args:
      indices: see ``EvalBatches.eval_indices``.
    """

    def __init__(self, indices: Callable[[int], list[int]]):
        super().__init__()
        self._indices, self._step = indices, 0
        self._rows: list[list[Any]] = []

    def update(self, output: EvalOutput, batch: HostBatch) -> None:
        """Add a batch."""
        super().update(output, batch)
        probabilities, classes = output.per_image
        indices, self._step = self._indices(self._step), self._step + 1
        for i in np.flatnonzero(batch["valid"]):
            label = int(batch["label"][i])
            self._rows.append([indices[i], label, classes[i].tolist(), probabilities[i].tolist()])

    def compute(self) -> dict[str, float]:
        """Return the means; share the images with all processes."""
        parts = gather_bytes(json.dumps(self._rows).encode())
        self._rows = sorted(row for part in parts for row in json.loads(part))
        return super().compute()

    def predictions(self, split: Split) -> list[report.Prediction]:
        """Return the predictions in the order of the records."""
        return [report.Prediction(split.records.key(index), *row) for index, *row in self._rows]


def _open(source: Source, options: Options) -> Split:
    """Open the images; those of a run's own evaluation if nothing else is asked for."""
    config = source.config
    if config is None:
        if not options.dataset:
            raise InputError("dataset is missing: give --dataset=folder:PATH or a name of TFDS")
        return open_split(options.dataset, options.split)
    name = options.dataset or config.dataset
    if options.split != "auto":
        return open_split(name, options.split, config.multi_label)
    splits = {"train_split": config.train_split, "eval_split": config.eval_split}
    try:
        opened = open_dataset(name, multi_label=config.multi_label, **splits)
    except InputError as error:
        hint = "" if options.dataset else "; if the data is elsewhere, say where with --dataset"
        raise InputError(f"{error}{hint}") from error
    return Split(opened.eval, opened.class_names, opened.notes)


def _match(source: Source, split: Split, num_classes: int) -> Sequence[int]:
    """Return the class of the model for each label of the data, by name."""
    known = source.card.class_names
    if known is None:
        if len(split.class_names) != num_classes:
            raise InputError(
                f"dataset: it has {len(split.class_names)} classes, the weights have {num_classes} "
                "and do not know their names; store them with resnest_jax.convert --class_names"
            )
        return range(num_classes)
    if unknown := [name for name in split.class_names if name not in set(known)]:
        raise InputError(
            f"dataset: {len(unknown)} of its {len(split.class_names)} classes are not classes of "
            f"the weights: {', '.join(unknown[:5])}; those of the weights are "
            f"{', '.join(known[:5])}{', ...' if len(known) > 5 else ''}"
        )
    if known != split.class_names:
        count = len(split.class_names)
        change = f"has only {count} of the {len(known)}" if count < len(known) else "reorders the"
        tell(f"the data {change} classes of the weights; they are matched by name")
    position = {name: index for index, name in enumerate(known)}
    return [position[name] for name in split.class_names]


def _loader_options(source: Source, batch_size: int | None) -> LoaderOptions:
    """Return how to read the images; as in the run, on any number of devices."""
    if source.config is not None:
        return loader_options(source.config, source.path, batch_size)
    size = round_up(batch_size or BATCH)
    return LoaderOptions(batch_size=size, eval_batch_size=size)


def _write(
    predictions: list[report.Prediction], class_names: Sequence[str], options: Options
) -> None:
    if options.predictions:
        report.write_predictions(options.predictions, predictions, class_names)
    if options.output and predictions:
        confusion = report.count_confusion(predictions, class_names)
        report.write_confusion(options.output, confusion)
        tell(report.worst_classes(confusion))


def _published(name: str, split: Split) -> dict[str, float]:
    """Return the published accuracy, if the data has all classes of ImageNet."""
    top1 = MODELS[name].top1 if name in MODELS else None
    if top1 is None or set(split.class_names) != set(synsets()):
        return {}
    return {"published_top1": round(top1 / 100, 6)}


def _describe(source: Source, split: Split, options: Options) -> str:
    dataset = options.dataset or (source.config and source.config.dataset)
    step = "" if source.step is None else f" at step {source.step}"
    return f"{source.name} of {source.path}{step} on {len(split.records)} images of {dataset}"
