"""Transform decoded images and label maps to a fixed size, for training and for evaluation."""

import dataclasses
import math
from typing import Any

import grain
import jax
import numpy as np

from resnest_jax.data import geometry
from resnest_jax.data.label_tables import IGNORED
from resnest_jax.errors import InputError
from resnest_jax.models.resnest import MIN_SIZE


@dataclasses.dataclass(frozen=True)
class EvalTransform(grain.transforms.Map):
    """Centred square of a decoded record, whose shorter side it resizes to ``crop_size``.

    ``{"image": uint8 (H, W, 3), "labels": uint8 (H, W)}`` ->
    ``{"image": uint8 (crop_size, crop_size, 3), "labels": uint8 (crop_size, crop_size)}``

    Raises:
      InputError: if ``crop_size`` is too small for the networks.
    """

    crop_size: int

    def __post_init__(self):
        _check_crop_size(self.crop_size)

    def map(self, element: dict[str, Any]) -> dict[str, np.ndarray]:
        image, labels = element["image"], element["labels"]
        transform = geometry.center_crop(labels.shape, self.crop_size)
        return _apply(transform, image, labels, IGNORED)


@dataclasses.dataclass(frozen=True)
class TrainTransform(grain.transforms.RandomMap):
    """Random resizing, crop and mirroring of a decoded record, see ``geometry.draw``.

    Input and output are those of ``EvalTransform``.

    Attributes:
      crop_size: side of the result.
      base_size, scale: the longer side becomes random, from ``base_size * scale[0]`` to
        ``base_size * scale[1]``.
      flip: mirror half of the images.
      padding: label of pixels outside the picture.

    Raises:
      InputError: if a field is out of range.
    """

    crop_size: int
    base_size: int
    scale: tuple[float, float] = (0.5, 2.0)
    flip: bool = True
    padding: int = IGNORED

    def __post_init__(self):
        _check_crop_size(self.crop_size)
        if self.base_size < 1:
            raise InputError(
                f"augment.base_size must be a positive number of pixels; got {self.base_size}"
            )
        match self.scale:
            case [int() | float() as low, int() | float() as high] if 0 < low <= high < math.inf:
                smallest = int(self.base_size * low)
            case _:
                raise InputError(
                    "augment.scale must be the least and the largest factor, both positive, such "
                    f"as (0.5, 2.0); got {self.scale}"
                )
        if smallest < 1:
            raise InputError(
                f"augment.scale {self.scale} times augment.base_size {self.base_size} must be at "
                "least 1 pixel"
            )

    @property
    def specs(self) -> tuple[dict[str, jax.ShapeDtypeStruct], ...]:
        """Shapes and dtypes of an element."""
        size = (self.crop_size, self.crop_size)
        image = jax.ShapeDtypeStruct((*size, 3), np.uint8)
        return ({"image": image, "labels": jax.ShapeDtypeStruct(size, np.uint8)},)

    def random_map(
        self, element: dict[str, Any], rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        image, labels = element["image"], element["labels"]
        draws = geometry.draw(
            rng, labels.shape, self.crop_size, self.base_size, self.scale, self.flip
        )
        transform = geometry.random_crop(labels.shape, self.crop_size, draws)
        return _apply(transform, image, labels, self.padding)


def _apply(
    transform: geometry.Transform, image: np.ndarray, labels: np.ndarray, padding: int
) -> dict[str, np.ndarray]:
    return {
        "image": transform.apply_image(image),
        "labels": transform.apply_labels(labels, padding),
    }


def _check_crop_size(crop_size: int) -> None:
    if crop_size < MIN_SIZE:
        raise InputError(f"crop_size must be at least {MIN_SIZE} pixels; got {crop_size}")
