"""The batches of a run: a named data set, its transforms and the loader, put together."""

import jax

from resnest_jax.data.loader import Batches, eval_batches, train_batches
from resnest_jax.data.sources import open_dataset
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
        dataset: str,
        *,
        train_split: str,
        eval_split: str,
        image_size: int,
        batch_size: int,
        seed: int,
        workers: int,
        **augment,
    ):
        if workers < 0:
            raise InputError(f"loader.workers must not be negative; got {workers}")
        opened = open_dataset(dataset, train_split=train_split, eval_split=eval_split)
        self.class_names = opened.class_names
        self.num_train, self.num_eval = len(opened.train), len(opened.eval)
        if self.num_train < batch_size:
            raise InputError(
                f"batch_size {batch_size} must not exceed the {self.num_train} training images"
            )
        self._dataset, self._seed = opened, seed
        self._train_transform = TrainTransform(image_size, **augment)
        self._eval_transform = EvalTransform(image_size)
        self._settings = {
            "batch_size": batch_size,
            "workers": workers,
            "process_index": jax.process_index(),
            "process_count": jax.process_count(),
        }

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
