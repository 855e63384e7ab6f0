"""Transform decoded images to a fixed size, for training and for evaluation."""

import dataclasses
from typing import Any

import grain
import jax
import numpy as np

from resnest_jax.data import augment, autoaugment, crops
from resnest_jax.errors import InputError

CROPS = ("center", "inception", "efficientnet")
POLICIES = ("none", "autoaugment", "randaugment")


@dataclasses.dataclass(frozen=True)
class EvalTransform(grain.transforms.Map):
    """Test crop of a decoded record.

    ``{"image": uint8 (H, W, C), "label"}`` -> ``{"image": uint8 (size, size, C), "label": int32}``

    Attributes:
      size: side in pixels.
      crop: one of the rules of ``crops.test_crop``.

    Raises:
      InputError: if a field is out of range.
    """

    size: int
    crop: str = "whole"

    def __post_init__(self):
        _check_size(self.size)
        crops.crop_fraction(self.crop, self.size)

    def map(self, element: dict[str, Any]) -> dict[str, np.ndarray]:
        image = crops.test_crop(element["image"], self.size, self.crop)
        return {"image": image, "label": np.array(element["label"], np.int32)}


@dataclasses.dataclass(frozen=True)
class TrainTransform(grain.transforms.RandomMap):
    """Random crop and augmentation of a decoded record.

    ``{"image": uint8 (H, W, C), "label"}`` -> ``{"image": uint8 (size, size, C), "label": int32}``

    Enabled steps run in the order of the fields. A policy gets the original image, before the
    crop, as in the authors' code.

    Attributes:
      size: side in pixels.
      policy: ``none``, ``autoaugment`` (the one of ImageNet) or ``randaugment``.
      policy_layers, policy_magnitude: of RandAugment; the magnitude is at most 30.
      crop: ``center``, the whole centred square; ``inception`` or ``efficientnet``, random boxes
        as in ``crops``, the latter resized bicubic.
      shift: largest move as a fraction of the side.
      flip: mirror half of the images.
      jitter: strength for brightness, contrast and saturation.
      lighting: standard deviation along the principal components of colour.
      erasing: probability of random erasing.
      channels: C, 3 for a policy, jitter or lighting, which change colours.
      label_shape: () of a class, (classes,) of labels of 0 and 1.

    Raises:
      InputError: if a field is out of range.
    """

    size: int
    policy: str = "none"
    policy_layers: int = 2
    policy_magnitude: float = 12
    crop: str = "center"
    shift: float = 0.0
    flip: bool = False
    jitter: float = 0.0
    lighting: float = 0.0
    erasing: float = 0.0
    channels: int = 3
    label_shape: tuple[int, ...] = ()

    def __post_init__(self):
        _check_size(self.size)
        for name, choices in (("crop", CROPS), ("policy", POLICIES)):
            if getattr(self, name) not in choices:
                raise InputError(
                    f"augment.{name} must be one of {choices}; got {getattr(self, name)!r}"
                )
        most = {
            "policy_layers": 14,
            "policy_magnitude": autoaugment.MAGNITUDES,
            "shift": 0.5,
            "jitter": 1,
            "lighting": 1,
            "erasing": 1,
        }
        for name, limit in most.items():
            if not 0 <= getattr(self, name) <= limit:
                raise InputError(
                    f"augment.{name} must be in [0, {limit}]; got {getattr(self, name)}"
                )

        if self.channels != 3:
            self._refuse_colors()

    def _refuse_colors(self) -> None:
        off = {"policy": "none", "jitter": 0, "lighting": 0}
        for name, value in off.items():
            if getattr(self, name) != value:
                raise InputError(
                    f"augment.{name} is for RGB images: set it to {value!r} with channels "
                    f"{self.channels}; got {getattr(self, name)!r}"
                )

    @property
    def specs(self) -> tuple[dict[str, jax.ShapeDtypeStruct], ...]:
        """Shapes and dtypes of an element."""
        image = jax.ShapeDtypeStruct((self.size, self.size, self.channels), np.uint8)
        return ({"image": image, "label": jax.ShapeDtypeStruct(self.label_shape, np.int32)},)

    def random_map(
        self, element: dict[str, Any], rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        image = self._crop(self._apply_policy(element["image"], rng), rng)
        if self.shift:
            image = augment.random_shift(image, rng, self.shift)
        if self.flip:
            image = augment.random_flip(image, rng)
        if self.jitter:
            image = augment.color_jitter(image, rng, self.jitter)
        if self.lighting:
            image = augment.random_lighting(image, rng, self.lighting)
        if self.erasing:
            image = augment.random_erasing(image, rng, self.erasing)
        return {"image": image, "label": np.array(element["label"], np.int32)}

    def _apply_policy(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if self.policy == "autoaugment":
            return autoaugment.auto_augment(image, rng)
        if self.policy == "randaugment":
            return autoaugment.rand_augment(image, rng, self.policy_layers, self.policy_magnitude)
        return image

    def _crop(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        height, width = image.shape[:2]
        if self.crop == "inception":
            return crops.resize_box(image, crops.inception_box(rng, height, width), self.size)
        if self.crop == "efficientnet":
            box = crops.efficientnet_box(rng, height, width, self.size)
            return crops.resize_box_bicubic(image, box, self.size)
        return crops.resize_and_center_crop(image, self.size)


def _check_size(size: int) -> None:
    if size < 1:
        raise InputError(f"image_size must be a positive number of pixels; got {size}")
