"""Evaluate a run of segmentation."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from resnest_jax.data.batches import EvalBatches, LoaderOptions
from resnest_jax.data.images import Images
from resnest_jax.data.label_maps import MaskDecoder
from resnest_jax.data.sources.masks import MaskDataset
from resnest_jax.files import make_folder
from resnest_jax.models.deeplab import SegmentationModel
from resnest_jax.models.inputs import normalize
from resnest_jax.tasks.loading import loader_options
from resnest_jax.tasks.progress import Shown, image_bar, tell
from resnest_jax.tasks.segmentation import recipe, report
from resnest_jax.tasks.segmentation.metrics import ConfusionMatrix
from resnest_jax.tasks.segmentation.sliding import MultiScale
from resnest_jax.tasks.segmentation.task import Segmentation
from resnest_jax.tasks.segmentation.transforms import EvalTransform
from resnest_jax.training.distributed import gather_bytes, is_main, main_first
from resnest_jax.training.evaluation import make_evaluate_variables
from resnest_jax.training.mesh import make_mesh
from resnest_jax.training.task import Batch, EvalOutput, Variables
from resnest_jax.weights.card import check_class_names
from resnest_jax.weights.segmenter import restore_run

WINDOWS = 4  # at a time, by default


class Options(NamedTuple):
    """How to evaluate; None is what the run does.

    Attributes:
      dataset, split: data and evaluation split; ``auto`` is that of the run.
      batch_size: images per step, or windows with ``multi_scale``.
      multi_scale: evaluate whole images in sliding windows at several scales, mirrored too.
      output: directory for tables and pictures of the classes.
    """

    dataset: str | None = None
    split: str = "auto"
    batch_size: int | None = None
    multi_scale: bool = False
    output: Path | None = None


def run(
    config: ConfigDict, workdir: Path, checkpoint: str = "last", options: Options | None = None
) -> dict[str, Any]:
    """Evaluate a run and return the figures, the same in every process.

    Args:
      config: of the run in ``workdir``.
      checkpoint: ``last``, ``best`` or a step.

    Raises:
      InputError: if the run, the data or an option cannot be used, or if the data has other
        classes than the run.
    """
    options = options or Options()
    config = ConfigDict(config.to_dict())
    config.dataset = options.dataset or config.dataset
    config.eval_split = config.eval_split if options.split == "auto" else options.split
    step, variables = restore_run(workdir, checkpoint)
    with main_first():
        dataset = recipe.open_dataset(config)
    check_class_names(workdir, dataset.class_names)
    if options.output and is_main():  # before the work
        make_folder("output", options.output)
    tell(
        *dataset.notes,
        f"{config.model.name} of {workdir} at step {step} on {len(dataset.eval)} images of "
        f"{config.dataset}",
    )
    task = recipe.make_task(config, dataset)
    metric = ConfusionMatrix(len(dataset.class_names))
    if options.multi_scale:
        evaluator = make_evaluator(config, task.model, variables, options.batch_size)
        figures = _multi_scale(evaluator, dataset, loader_options(config, workdir), metric)
    else:
        loader = loader_options(config, workdir, options.batch_size)
        figures = _single_scale(task, variables, dataset, loader, metric)
    if is_main():
        tell(report.table(metric, dataset.class_names))
        if options.output:
            report.write(options.output, metric, dataset.class_names)
    return {"model": config.model.name, "step": step, **figures}


class _Kept(NamedTuple):
    """A task whose metric is kept."""

    task: Segmentation
    kept: ConfusionMatrix

    def eval_step(self, variables: Variables, batch: Batch) -> EvalOutput:
        return self.task.eval_step(variables, batch)

    def metric(self) -> ConfusionMatrix:
        return self.kept


def _single_scale(
    task: Segmentation,
    variables: Variables,
    dataset: MaskDataset,
    loader: LoaderOptions,
    metric: ConfusionMatrix,
) -> dict[str, float]:
    """Evaluate centred crops, as in training."""
    batches = EvalBatches(
        dataset.eval, EvalTransform(task.crop_size), loader, MaskDecoder(dataset.table)
    )
    return make_evaluate_variables(_Kept(task, metric), Shown(batches), make_mesh())(variables)


def _multi_scale(
    evaluator: MultiScale, dataset: MaskDataset, loader: LoaderOptions, metric: ConfusionMatrix
) -> dict[str, float]:
    """Evaluate whole images; each process has its own, on its first device."""
    images = Images(
        dataset.eval, loader.max_unreadable, loader.unreadable_log, MaskDecoder(dataset.table)
    )
    labels: list[np.ndarray] = []

    def read() -> Iterator[np.ndarray]:
        for index in range(jax.process_index(), len(images), jax.process_count()):
            if record := images.read_or_skip(index):
                labels.append(record["labels"])
                yield normalized(record["image"])

    passes, images_seen, begun = 0, 0, time.perf_counter()
    with image_bar(len(images)) as bar:
        for prediction in evaluator.predict(read()):
            metric.add(labels.pop(0), prediction.labels)
            passes, images_seen = passes + prediction.passes, images_seen + 1
            bar.update(jax.process_count())
    seconds = time.perf_counter() - begun
    tell(
        f"{images_seen / seconds:.3g} images/s, {passes / seconds:.3g} windows/s in this process, "
        "compilation included"
    )
    parts = gather_bytes(metric.counts.tobytes())
    metric.counts[:] = sum(
        np.frombuffer(part, np.int64).reshape(metric.counts.shape) for part in parts
    )
    return {f"eval_{name}": value for name, value in metric.compute().items()}


def make_evaluator(
    config: ConfigDict,
    model: SegmentationModel,
    variables: Variables,
    batch_size: int | None = None,
    *,
    single: bool = False,
) -> MultiScale:
    """Return the sliding-window evaluator of a run; ``single``: at scale 1 without mirroring."""
    apply = jax.jit(model.apply)
    variables = jax.device_put(variables)
    return MultiScale(
        lambda images: apply(variables, images),
        config.augment.base_size,
        config.crop_size,
        (1.0,) if single else config.evaluation.scales,
        flip=not single,
        batch_size=batch_size or WINDOWS,
    )


def normalized(image: np.ndarray) -> np.ndarray:
    """Return an image (h, w, 3), 0..255, as the evaluator takes it, float32."""
    return np.asarray(normalize(jnp.asarray(image[None]))[0])
