"""The batches of a run: a named data set, its transforms and the loader, put together."""

from pathlib import Path

import jax

from resnest_jax.data.loader import Batches, eval_batches, train_batches
from resnest_jax.data.sources import Dataset
from resnest_jax.data.transforms import EvalTransform, TrainTransform
from resnest_jax.errors import InputError


class ImageBatches:
    """Training and evaluation batches of labelled images, this process's share of them.

    Attributes:
      class_names: names of the labels.
      num_train, num_eval: images in each part.
    """

    def __init__(
        self,
        opened: Dataset,
        *,
        image_sizes: tuple[tuple[int, int], ...],
        eval_image_size: int,
        eval_crop: str,
        batch_size: int,
        seed: int,
        workers: int,
        max_unreadable: int,
        unreadable_log: Path | None,
        shift: float,
        flip: bool,
        **augment,
    ):
        if workers < 0:
            raise InputError(f"loader.workers must not be negative; got {workers}")
        self.class_names = opened.class_names
        self.num_train, self.num_eval = len(opened.train), len(opened.eval)
        if self.num_train < batch_size:
            raise InputError(
                f"batch_size {batch_size} must not exceed the {self.num_train} training images"
            )
        self._dataset, self._seed = opened, seed
        self._train_transform = TrainTransform(image_sizes[0][1], shift=shift, flip=flip)
        self._eval_transform = EvalTransform(eval_image_size)
        self._settings = {
            "batch_size": batch_size,
            "workers": workers,
            "process_index": jax.process_index(),
            "process_count": jax.process_count(),
        }

    def train_keys(self, step: int) -> list[str]:
        return [str(step)] * self._settings["batch_size"]

    def train(self, start_step: int) -> Batches:
        """Endless training batches from a step on."""
        return train_batches(
            self._dataset.train,
            self._train_transform,
            seed=self._seed,
            start_step=start_step,
            **self._settings,
        )

    def eval(self) -> Batches:
        """One pass over the evaluation images."""
        return eval_batches(self._dataset.eval, self._eval_transform, **self._settings)
