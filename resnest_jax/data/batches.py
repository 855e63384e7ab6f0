"""The batches of a run: a data set, its transforms and the loader, put together."""

import itertools
from pathlib import Path

import jax

from resnest_jax.data.images import Images
from resnest_jax.data.loader import Batches, Share, eval_batches, train_batches, train_keys
from resnest_jax.data.sources.records import Dataset
from resnest_jax.errors import InputError
from resnest_jax.tasks.classification.transforms import EvalTransform, TrainTransform


class ImageBatches:
    """Training and evaluation batches of labelled images, this process's share of them.

    Attributes:
      class_names: names of the labels.
      num_train, num_eval: images in each part.

    Args:
      dataset: what ``open_dataset`` gives.
      image_sizes: (first step, side) of the training images, from step 0 on.
      eval_image_size, eval_crop: see ``EvalTransform``.
      batch_size: images of all processes.
      eval_batch_size: those of a batch to evaluate.
      seed: of order and augmentation.
      unreadable_log: where images that cannot be read are listed; None allows none.
      workers: see ``train_batches``.
      max_unreadable: see ``Images``.
      repeats: see ``train_batches``.
      **augment: fields of ``TrainTransform``.

    Raises:
      InputError: if any of it is out of range.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        image_sizes: tuple[tuple[int, int], ...],
        eval_image_size: int,
        eval_crop: str,
        batch_size: int,
        eval_batch_size: int,
        seed: int,
        unreadable_log: Path | None,
        workers: int,
        max_unreadable: int,
        repeats: int,
        **augment,
    ):
        self.class_names = dataset.class_names
        self.num_train, self.num_eval = len(dataset.train), len(dataset.eval)
        if self.num_train < batch_size:
            raise InputError(
                f"batch_size {batch_size} must not exceed the {self.num_train} training images"
            )
        if workers < 0:
            raise InputError(f"loader.workers must not be negative; got {workers}")
        process = {"index": jax.process_index(), "count": jax.process_count()}
        self._share = Share(batch_size, **process)
        self._eval_share = Share(eval_batch_size, **process)
        self._records, self._workers = dataset.train, workers
        self._train_images = Images(dataset.train, max_unreadable, unreadable_log)
        self._eval_images = Images(dataset.eval, max_unreadable, unreadable_log)
        self._transforms = [(step, TrainTransform(size, **augment)) for step, size in image_sizes]
        self._eval_transform = EvalTransform(eval_image_size, eval_crop)
        self._order = {"seed": seed, "repeats": repeats}

    def train(self, start_step: int) -> Batches:
        """Endless training batches from a step on."""
        ends = [step for step, _ in self._transforms[1:]] + [None]
        for (_, transform), end in zip(self._transforms, ends, strict=True):
            if end is not None and end <= start_step:
                continue
            batches = train_batches(
                self._train_images,
                transform,
                self._share,
                start_step=start_step,
                workers=self._workers,
                **self._order,
            )
            try:
                yield from itertools.islice(batches, None if end is None else end - start_step)
            finally:
                batches.close()
            start_step = end

    def train_keys(self, step: int) -> list[str]:
        """What finds the records of this process's part of the batch of a step, from 0."""
        return train_keys(self._records, self._share, step=step, **self._order)

    def train_specs(self) -> tuple[dict[str, jax.ShapeDtypeStruct], ...]:
        """Return every shape of a global training batch, in the order of training."""
        return tuple(
            {
                name: jax.ShapeDtypeStruct((self._share.batch_size, *leaf.shape), leaf.dtype)
                for name, leaf in transform.spec.items()
            }
            for _, transform in self._transforms
        )

    def eval(self) -> Batches:
        """One pass over the evaluation images."""
        return eval_batches(
            self._eval_images, self._eval_transform, self._eval_share, workers=self._workers
        )
