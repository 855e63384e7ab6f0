"""Evaluate a detector on any images with boxes or masks, by COCO's figures."""

from functools import partial
from typing import Any

from resnest_jax.tasks import evaluation
from resnest_jax.tasks.detection import loading, recipe, report
from resnest_jax.tasks.detection.task import Detection
from resnest_jax.tasks.evaluation import Options
from resnest_jax.tasks.progress import tell
from resnest_jax.training.distributed import is_main
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
    loader = evaluation.loader_of(detector, config, options.batch_size)
    batches = loading.make_eval_batches(config, dataset, loader)
    figures = evaluation.evaluate(detector, task, metric, batches)
    if is_main():
        tell(report.table(metric, dataset.class_names))
        if options.output:
            report.write(options.output, metric, dataset.class_names)
    return evaluation.headed(detector, figures)
