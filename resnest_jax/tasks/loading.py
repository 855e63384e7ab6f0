"""How the records of a run are read."""

import contextlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from resnest_jax.data.batches import LoaderOptions
from resnest_jax.training.mesh import round_up
from resnest_jax.training.task import Batches, HostBatch


def loader_options(
    config: ConfigDict, workdir: Path | None, eval_batch_size: int | None = None, **others: Any
) -> LoaderOptions:
    """Return the options of a run's batches.

    Args:
      workdir: directory for the list of unreadable records.
      eval_batch_size: images per evaluation step, rounded up to a multiple of the devices; by
        default those of the config, or as many at a time as in training.
      **others: fields that only one task has.
    """
    size = config.evaluation.batch_size or config.batch_size // config.parallel.accumulate
    return LoaderOptions(
        batch_size=config.batch_size,
        eval_batch_size=round_up(eval_batch_size or size),
        seed=config.seed,
        unreadable_log=workdir and workdir / f"unreadable_{jax.process_index()}.txt",
        **config.loader,
        **others,
    )


def read_batch(batches: Batches, split: str, index: int = 0) -> HostBatch:
    """Return a training batch (``train``), or the images of the first of evaluation (``eval``)."""
    # Without worker processes, which take longer to start than a batch takes to read.
    stream = batches.train(index, workers=0) if split == "train" else batches.eval(workers=0)
    with contextlib.closing(stream):
        batch = jax.tree.map(np.array, next(stream))  # a copy: a stream may reuse its memory
    if split == "train":
        return batch
    return {name: value[batch["valid"]] for name, value in batch.items()}
