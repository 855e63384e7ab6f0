"""From an encoded record to the image that the network sees, on the host."""

import dataclasses

import cv2
import grain.python as grain
import numpy as np

from resnest_jax.errors import InputError


def decode(record: dict) -> np.ndarray:
    """RGB image (H, W, 3) uint8 of an encoded record; grey, palette, RGBA and 16-bit ones too.

    Raises:
      InputError: if the bytes are no image; it names the record's ``key``.
    """
    data = np.frombuffer(record["image"], np.uint8)
    image = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB) if data.size else None
    if image is None:
        raise InputError(f"{record['key']}: cannot be decoded as an image")
    return image


def resize_and_crop(image: np.ndarray, size: int) -> np.ndarray:
    """Short side to ``size``, then the centred square: (H, W, 3) -> (size, size, 3).

    Shrinking averages over areas, as antialiasing does; enlarging is bilinear.
    """
    height, width = image.shape[:2]
    scale = size / min(height, width)
    # Rounding must not leave the short side one pixel short.
    shape = (max(size, round(width * scale)), max(size, round(height * scale)))
    if (width, height) != shape:
        filter = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        image = cv2.resize(image, shape, interpolation=filter)
    top, left = (image.shape[0] - size) // 2, (image.shape[1] - size) // 2
    return image[top : top + size, left : left + size]


def random_shift(image: np.ndarray, rng: np.random.Generator, fraction: float) -> np.ndarray:
    """Translate by up to ``fraction`` of each side, uniform in whole pixels; black comes in."""
    shifted = np.zeros_like(image)
    source, target = [], []
    for side in image.shape[:2]:
        limit = round(fraction * side)
        shift = int(rng.integers(-limit, limit + 1))
        source.append(slice(max(0, -shift), side - max(0, shift)))
        target.append(slice(max(0, shift), side - max(0, -shift)))
    shifted[tuple(target)] = image[tuple(source)]
    return shifted


def random_flip(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mirror left and right with probability one half."""
    return image[:, ::-1] if rng.random() < 0.5 else image


@dataclasses.dataclass(frozen=True)
class EvalTransform(grain.MapTransform):
    """Record -> ``{"image": (size, size, 3) uint8, "label": int32}``, the same every time."""

    size: int

    def map(self, record: dict) -> dict:
        image = resize_and_crop(decode(record), self.size)
        return {"image": image, "label": np.int32(record["label"])}


@dataclasses.dataclass(frozen=True)
class TrainTransform(grain.RandomMapTransform):
    """Record -> ``{"image": (size, size, 3) uint8, "label": int32}``, augmented.

    Attributes:
      size: side of the image in pixels.
      shift: largest translation as a fraction of the side.
      flip: whether to mirror half of the images.

    Raises:
      InputError: if ``shift`` is not in [0, 0.5].
    """

    size: int
    shift: float = 0.0
    flip: bool = False

    def __post_init__(self):
        if not 0 <= self.shift <= 0.5:
            raise InputError(f"augment.shift must be in [0, 0.5]; got {self.shift}")

    def random_map(self, record: dict, rng: np.random.Generator) -> dict:
        image = resize_and_crop(decode(record), self.size)
        if self.shift:
            image = random_shift(image, rng, self.shift)
        if self.flip:
            image = random_flip(image, rng)
        return {"image": np.ascontiguousarray(image), "label": np.int32(record["label"])}
