"""Evaluate a detector on any images with boxes or masks, by COCO's figures."""

import time
from functools import partial
from typing import Any

import jax

from resnest_jax.data.batches import EvalBatches
from resnest_jax.tasks import evaluation
from resnest_jax.tasks.detection import loading, recipe, report
from resnest_jax.tasks.detection.task import Detection
from resnest_jax.tasks.detection.views import make_detect
from resnest_jax.tasks.evaluation import Options
from resnest_jax.tasks.progress import Shown, tell
from resnest_jax.training.distributed import is_main
from resnest_jax.training.evaluation import evaluate_batches
from resnest_jax.training.mesh import make_mesh
from resnest_jax.training.task import EvalOutput, HostBatch, Metric
from resnest_jax.weights.detection import Detector


def run(detector: Detector, options: Options | None = None) -> dict[str, Any]:
    """Evaluate a detector and return the figures, the same in every process.

    Raises:
      InputError: if the data or an option cannot be used, or if the data has other classes than
        the model.
    """
    options = options or Options()
    loading.check_evaluation(detector.config)
    config, dataset = evaluation.open_evaluated(
        detector, options, partial(recipe.open_dataset, training=False), recipe.DATASETS
    )
    task = Detection(detector.model, dataset.truth)
    metric = task.metric()
    if options.multi_scale:
        # Views of one image take as much memory as a batch.
        loader = evaluation.loader_of(detector, config, options.batch_size or jax.device_count())
        batches = loading.make_view_batches(config, dataset, loader)
        figures = _multi_scale(detector, metric, batches)
    else:
        loader = evaluation.loader_of(detector, config, options.batch_size)
        batches = loading.make_eval_batches(config, dataset, loader)
        figures = evaluation.evaluate(detector, task, metric, batches)
    if is_main():
        tell(report.table(metric, dataset.class_names))
        if options.output:
            report.write(options.output, metric, dataset.class_names)
    return evaluation.headed(detector, figures)


def _multi_scale(detector: Detector, metric: Metric, batches: EvalBatches) -> dict[str, float]:
    """Evaluate views of several sizes."""
    config = detector.config
    detect = make_detect(detector.model, detector.variables, config.data.flip, make_mesh())

    def step(batch: HostBatch) -> EvalOutput:
        return EvalOutput({}, detect(batch))

    begun = time.perf_counter()
    figures = evaluate_batches(step, metric, Shown(batches))
    rate = batches.num_eval / (time.perf_counter() - begun)
    views = len(config.evaluation.view_sides) * (1 + config.data.flip)
    tell(f"{rate:.3g} images/s, {views * rate:.3g} views/s, compilation included")
    return figures
