"""Evaluate a run of segmentation, or any weights on any label maps."""

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from resnest_jax.compiling import compiler_options
from resnest_jax.data.batches import EvalBatches, LoaderOptions
from resnest_jax.data.images import Images
from resnest_jax.data.label_maps import MaskDecoder
from resnest_jax.data.sources.masks import MaskDataset
from resnest_jax.models.inputs import normalize
from resnest_jax.tasks import evaluation
from resnest_jax.tasks.evaluation import Options
from resnest_jax.tasks.progress import image_bar, tell
from resnest_jax.tasks.segmentation import recipe, report
from resnest_jax.tasks.segmentation.metrics import ConfusionMatrix
from resnest_jax.tasks.segmentation.sliding import MultiScale
from resnest_jax.tasks.segmentation.task import Segmentation
from resnest_jax.tasks.segmentation.transforms import EvalTransform
from resnest_jax.training.distributed import gather_bytes, is_main
from resnest_jax.training.mesh import (
    batch_sharding,
    make_local_mesh,
    replicated,
    round_up,
)
from resnest_jax.weights.segmentation import Segmenter

WINDOWS = 4  # at a time on each device, by default


def run(segmenter: Segmenter, options: Options | None = None) -> dict[str, Any]:
    """Evaluate a model and return the figures, the same in every process.

    Raises:
      InputError: if the data or an option cannot be used, or if the data has other classes than
        the model.
    """
    options = options or Options()
    config, dataset = evaluation.open_evaluated(
        segmenter, options, partial(recipe.open_dataset, training=False), recipe.DATASETS
    )
    metric = ConfusionMatrix(len(dataset.class_names))
    if options.multi_scale:
        evaluator = make_evaluator(segmenter, options.batch_size)
        figures = _multi_scale(
            evaluator, dataset, evaluation.loader_of(segmenter, config, None), metric
        )
    else:
        loader = evaluation.loader_of(segmenter, config, options.batch_size)
        figures = _single_scale(segmenter, dataset, loader, metric)
    if is_main():
        tell(report.table(metric, dataset.class_names))
        if options.output:
            report.write(options.output, metric, dataset.class_names)
    return evaluation.headed(segmenter, figures)


def _single_scale(
    segmenter: Segmenter, dataset: MaskDataset, loader: LoaderOptions, metric: ConfusionMatrix
) -> dict[str, float]:
    """Evaluate centred crops, as in training."""
    crop_size = segmenter.config.crop_size
    batches = EvalBatches(
        dataset.eval, EvalTransform(crop_size), loader, MaskDecoder(dataset.table)
    )
    task = Segmentation(segmenter.model, crop_size, dataset.class_names)
    return evaluation.evaluate(segmenter, task, metric, batches)


def _multi_scale(
    evaluator: MultiScale, dataset: MaskDataset, loader: LoaderOptions, metric: ConfusionMatrix
) -> dict[str, float]:
    """Evaluate whole images; each process has its own."""
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
    segmenter: Segmenter, batch_size: int | None = None, *, single: bool = False
) -> MultiScale:
    """Return the sliding-window evaluator of a model, on all devices of this process.

    Args:
      batch_size: windows in a batch, rounded up to a multiple of the devices.
      single: at scale 1 without mirroring.
    """
    mesh = make_local_mesh()
    apply = jax.jit(segmenter.model.apply, compiler_options=compiler_options())
    variables = jax.device_put(segmenter.variables, replicated(mesh))

    def logits(images: jax.Array) -> jax.Array:
        return apply(variables, jax.device_put(images, batch_sharding(mesh)))

    config = segmenter.config
    return MultiScale(
        logits,
        config.augment.base_size,
        config.crop_size,
        (1.0,) if single else config.evaluation.scales,
        flip=config.augment.flip and not single,  # a mirrored digit is another character
        batch_size=round_up(batch_size or WINDOWS * mesh.size, mesh),
    )


def normalized(image: np.ndarray) -> np.ndarray:
    """Return an image (h, w, 3), 0..255, as the evaluator takes it, float32."""
    return np.asarray(normalize(jnp.asarray(image[None]))[0])
