"""Random changes to a decoded image, uint8 (H, W, 3) RGB, one function for each."""

import math

import cv2
import numpy as np
from PIL import Image, ImageEnhance

# Principal components of the colours of ImageNet (AlexNet; 0..255 RGB): standard deviations, and
# directions as columns.
COLOR_DEVIATIONS = np.array([55.46, 4.794, 1.148])
COLOR_DIRECTIONS = np.array(
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
)
JITTERED = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


def random_shift(image: np.ndarray, rng: np.random.Generator, fraction: float) -> np.ndarray:
    """Move a (H, W, C) image by whole pixels, uniform up to +- ``round(fraction * side)``.

    The axes are drawn independently. The uncovered border is 0, black.
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
    """Mirror a (H, W, C) image left to right with probability 1/2."""
    return image[:, ::-1] if rng.random() < 0.5 else image


def color_jitter(image: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Change brightness, contrast and saturation, in random order, by factors of 1 +- strength."""
    picture = Image.fromarray(image)
    for index in rng.permutation(len(JITTERED)):
        factor = rng.uniform(max(0.0, 1 - strength), 1 + strength)
        picture = JITTERED[index](picture).enhance(factor)
    return np.asarray(picture)


def random_lighting(image: np.ndarray, rng: np.random.Generator, deviation: float) -> np.ndarray:
    """Add one colour to all pixels, normal along the principal components (AlexNet)."""
    color = COLOR_DIRECTIONS @ (rng.normal(0.0, deviation, 3) * COLOR_DEVIATIONS)
    scalar = np.array([*color, 0.0])[:, None]  # OpenCV adds it to every pixel
    return cv2.add(np.ascontiguousarray(image), scalar)


def random_erasing(image: np.ndarray, rng: np.random.Generator, probability: float) -> np.ndarray:
    """Fill a box of 2 to 33 % of the area and aspect ratio 0.3 to 1 / 0.3 with uniform noise.

    This happens with the given probability (arXiv 1708.04896), and not if ten boxes do not fit.
    """
    if rng.random() >= probability:
        return image
    height, width, channels = image.shape
    for _ in range(10):
        area = height * width * rng.uniform(0.02, 0.33)
        ratio = math.exp(rng.uniform(math.log(0.3), -math.log(0.3)))
        h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < h < height and 0 < w < width:
            top, left = rng.integers(height - h), rng.integers(width - w)
            image = image.copy()
            noise = rng.integers(0, 256, (h, w, channels), np.uint8)
            image[top : top + h, left : left + w] = noise
            return image
    return image
