"""What the evaluations of networks on a backbone share."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from ml_collections import ConfigDict

from resnest_jax.data.batches import EvalBatches, LoaderOptions
from resnest_jax.data.sources.records import Dataset
from resnest_jax.errors import InputError
from resnest_jax.files import make_folder
from resnest_jax.tasks.loading import loader_options
from resnest_jax.tasks.progress import Shown, tell
from resnest_jax.training.distributed import is_main, main_first
from resnest_jax.training.evaluation import make_evaluate_variables
from resnest_jax.training.mesh import make_mesh
from resnest_jax.training.task import Batch, EvalOutput, Metric, Task, Variables
from resnest_jax.weights.card import check_class_names
from resnest_jax.weights.network import Network

BATCH = 16  # images at a time, of weights without a run

AnyDataset = TypeVar("AnyDataset", bound=Dataset)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """How to evaluate; None is what the run does, or what is usual.

    Attributes:
      dataset, split: data and evaluation split; ``auto`` is that of the run.
      batch_size: images per step, of segmentation with ``multi_scale`` windows.
      multi_scale: at several scales, and mirrored too if training was: segmentation in sliding
        windows, detection in views whose detections are united.
      output: directory for tables.
    """

    dataset: str | None = None
    split: str = "auto"
    batch_size: int | None = None
    multi_scale: bool = False
    output: Path | None = None


def open_evaluated(
    network: Network,
    options: Options,
    open_dataset: Callable[[ConfigDict], AnyDataset],
    datasets: str,
) -> tuple[ConfigDict, AnyDataset]:
    """Open the data, compare its classes with the model's, and say what is evaluated.

    Args:
      open_dataset: opens the data set of a config.
      datasets: what ``dataset`` may be, for the error.

    Returns:
      The config of the network with the data of the options, and the data set.

    Raises:
      InputError: if the data or an option cannot be used, or if the data has other classes.
    """
    config = ConfigDict(network.config.to_dict())
    config.dataset = options.dataset or config.dataset
    config.eval_split = config.eval_split if options.split == "auto" else options.split
    if not config.dataset:
        raise InputError(f"dataset is missing: give --dataset, {datasets}")
    with main_first():
        dataset = open_dataset(config)
    _check_classes(network, dataset)
    if options.output and is_main():  # before the work
        make_folder("output", options.output)
    at = "" if network.step is None else f" at step {network.step}"
    tell(
        *dataset.notes,
        f"{network.about} of {network.path}{at}; {len(dataset.eval)} images of {config.dataset}",
    )
    return config, dataset


def loader_of(network: Network, config: ConfigDict, batch_size: int | None) -> LoaderOptions:
    """Return how to read the data; without a batch size that of the run, or the usual one."""
    is_run = network.step is not None
    usual = None if is_run else BATCH
    return loader_options(config, network.path if is_run else None, batch_size or usual)


def evaluate(
    network: Network, task: Task, metric: Metric, batches: EvalBatches
) -> dict[str, float]:
    """Evaluate batches with a metric that is kept; return its figures."""
    evaluate = make_evaluate_variables(_Kept(task, metric), Shown(batches), make_mesh())
    return evaluate(network.variables)


def headed(network: Network, figures: dict[str, float]) -> dict[str, Any]:
    """Return the figures after the model, and the step of a run."""
    step = {} if network.step is None else {"step": network.step}
    return {"model": network.description["name"], **step, **figures}


class _Kept(NamedTuple):
    """A task whose metric is kept."""

    task: Task
    kept: Metric

    def eval_step(self, variables: Variables, batch: Batch) -> EvalOutput:
        return self.task.eval_step(variables, batch)

    def metric(self) -> Metric:
        return self.kept


def _check_classes(network: Network, dataset: Dataset) -> None:
    """Raise InputError if the data has other classes than the model."""
    check_class_names(network.path, dataset.class_names, network.card)
    if len(dataset.class_names) != network.num_classes:
        raise InputError(
            f"dataset: it has {len(dataset.class_names)} classes, but the weights {network.path} "
            f"have {network.num_classes}"
        )
