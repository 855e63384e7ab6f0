"""From an encoded record to a fixed-size uint8 image, for training and for evaluation."""

import dataclasses

import cv2
import grain
import numpy as np

from resnest_jax.errors import InputError

# Grain already runs one image per core; OpenCV's own threads would only contend with it.
cv2.setNumThreads(1)


def decode(record) -> np.ndarray:
    """Decodes a record's image to uint8 (H, W, 3), RGB.

    Grey and palette images become RGB, alpha is dropped, 16 bits keep the upper 8. The EXIF
    orientation is ignored, as the usual ImageNet pipelines do.

    Raises:
      InputError: The bytes are no whole image; the message names record["key"].
    """
    encoded = np.frombuffer(record["image"], np.uint8)
    image = None
    if encoded.size:  # OpenCV raises on an empty buffer and returns None on any other it rejects.
        image = cv2.imdecode(encoded, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None:
        raise InputError(f"cannot decode the image {record['key']}: expected a whole JPEG or PNG")
    return image


def resize_and_center_crop(image: np.ndarray, size: int) -> np.ndarray:
    """Scales the short side of a (H, W, C) image to `size` and keeps the centre: (size, size, C).

    The central square is cut out first: the same region of the image, at less cost. Shrinking
    averages over area, which does not alias; enlarging is bicubic.
    """
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = image[top : top + side, left : left + side]
    if side == size:
        return square
    interpolation = cv2.INTER_AREA if size < side else cv2.INTER_CUBIC
    return cv2.resize(square, (size, size), interpolation=interpolation)


def random_shift(image: np.ndarray, rng: np.random.Generator, fraction: float) -> np.ndarray:
    """Moves a (H, W, C) image by whole pixels, uniform up to round(fraction * side) either way.

    Each axis is drawn on its own. The uncovered border is zero, that is black.
    """
    height, width = image.shape[:2]
    most_y, most_x = round(fraction * height), round(fraction * width)
    y = int(rng.integers(-most_y, most_y, endpoint=True))
    x = int(rng.integers(-most_x, most_x, endpoint=True))
    shifted = np.zeros_like(image)
    shifted[max(y, 0) : height + min(y, 0), max(x, 0) : width + min(x, 0)] = image[
        max(-y, 0) : height - max(y, 0), max(-x, 0) : width - max(x, 0)
    ]
    return shifted


def random_flip(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mirrors a (H, W, C) image left to right with probability one half."""
    return image[:, ::-1] if rng.random() < 0.5 else image


@dataclasses.dataclass(frozen=True)
class EvalTransform(grain.transforms.Map):
    """Record -> {"image": uint8 (size, size, 3), "label": int32 ()}.

    Raises:
      InputError: `size` is not positive; when called, an image that does not decode.
    """

    size: int

    def __post_init__(self):
        _check_size(self.size)

    def map(self, element):
        image = resize_and_center_crop(decode(element), self.size)
        return {"image": image, "label": np.int32(element["label"])}


@dataclasses.dataclass(frozen=True)
class TrainTransform(grain.transforms.RandomMap):
    """Record -> {"image": uint8 (size, size, 3), "label": int32 ()}, shifted and flipped at random.

    `shift` is the largest move as a fraction of the side; `flip` mirrors half of the images.

    Raises:
      InputError: `size` is not positive or `shift` not in 0..0.5; when called, an image that does
        not decode.
    """

    size: int
    shift: float
    flip: bool

    def __post_init__(self):
        _check_size(self.size)
        if not 0 <= self.shift <= 0.5:
            raise InputError(f"augment.shift must be in [0, 0.5], got {self.shift}")

    def random_map(self, element, rng):
        image = resize_and_center_crop(decode(element), self.size)
        image = random_shift(image, rng, self.shift)
        if self.flip:
            image = random_flip(image, rng)
        return {"image": image, "label": np.int32(element["label"])}


def _check_size(size):
    if size < 1:
        raise InputError(f"image_size must be a positive number of pixels, got {size}")
