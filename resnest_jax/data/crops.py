"""Crops of an image: boxes in the original image, and their resizing."""

import math

import cv2
import numpy as np
from PIL import Image

from resnest_jax.errors import InputError

Box = tuple[int, int, int, int]  # left, top, right, bottom, in pixels

ATTEMPTS = 10  # to find a random box within the image
MARGIN = 32  # of the authors' test crop: it keeps size / (size + MARGIN) of the short side


def center_box(height: int, width: int, fraction: float = 1.0) -> Box:
    """Return the centred square whose side is a fraction of the short side, at least one pixel."""
    exact = fraction * min(height, width)
    side = max(round(exact), 1)
    left, top = (round((length - exact) / 2) for length in (width, height))
    return left, top, left + side, top + side


def inception_box(rng: np.random.Generator, height: int, width: int) -> Box:
    """Draw a box of 8 to 100 % of the area and aspect ratio 3/4 to 4/3, log-uniform.

    After ten boxes that do not fit, returns the largest centred box with an aspect ratio in that
    range (arXiv 1409.4842, as in torchvision).
    """
    for _ in range(ATTEMPTS):
        area = height * width * rng.uniform(0.08, 1.0)
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return _random_place(rng, height, width, h, w)
    h = min(height, round(width / (3 / 4)))
    w = min(width, round(height * (4 / 3)))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def efficientnet_box(rng: np.random.Generator, height: int, width: int, size: int) -> Box:
    """Draw a box of 10 to 100 % of the area and aspect ratio 3/4 to 4/3, its height uniform.

    After ten boxes that do not fit, returns the authors' test crop for images of ``size`` pixels.
    This is the authors' choice for training crops of 320 pixels and more.
    """
    area = height * width
    for _ in range(ATTEMPTS):
        ratio = rng.uniform(3 / 4, 4 / 3)
        most = min(height, math.floor(width / ratio), round(math.sqrt(area / ratio)))
        least = min(most, round(math.sqrt(0.1 * area / ratio)))
        h = round(rng.uniform(least, most))
        w = round(h * ratio)
        if 0 < w <= width and 0 < h <= height and 0.1 * area <= h * w < area:
            return _random_place(rng, height, width, h, w)
    return center_box(height, width, size / (size + MARGIN))


def _random_place(rng: np.random.Generator, height: int, width: int, h: int, w: int) -> Box:
    top = int(rng.integers(0, height - h, endpoint=True))
    left = int(rng.integers(0, width - w, endpoint=True))
    return left, top, left + w, top + h


def resize_box(image: np.ndarray, box: Box, size: int) -> np.ndarray:
    """Resize a box of a (H, W, C) image to (size, size, C): fast, and without aliasing.

    Shrinking averages over area; enlarging is linear.
    """
    left, top, right, bottom = box
    part = image[top:bottom, left:right]
    if part.shape[:2] == (size, size):
        return part
    shrinks = size <= min(part.shape[:2])
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return _resize(part, size, interpolation)


def resize_box_bicubic(image: np.ndarray, box: Box, size: int) -> np.ndarray:
    """Resize a box of a (H, W, C) image to (size, size, C), bicubic and antialiased (Pillow)."""
    left, top, right, bottom = box
    part = image[top:bottom, left:right]  # without the pixels around it

    def resize(pixels: np.ndarray) -> np.ndarray:
        picture = Image.fromarray(pixels)
        return np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC))

    if part.shape[2] == 3:
        return resize(part)
    # One by one: Pillow would weight the colours by the opacity.
    return np.stack([resize(part[..., channel]) for channel in range(part.shape[2])], -1)


def resize_and_center_crop(image: np.ndarray, size: int) -> np.ndarray:
    """Resize the whole centred square of a (H, W, C) image to (size, size, C).

    Shrinking averages over area; enlarging is bicubic, for small images that the object fills.
    """
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = image[top : top + side, left : left + side]
    if side == size:
        return square
    interpolation = cv2.INTER_AREA if size < side else cv2.INTER_CUBIC
    return _resize(square, size, interpolation)


def _resize(image: np.ndarray, size: int, interpolation: int) -> np.ndarray:
    """Resize with OpenCV, which drops the axis of one channel."""
    resized = cv2.resize(image, (size, size), interpolation=interpolation)
    return resized.reshape(size, size, image.shape[2])


def test_crop(image: np.ndarray, size: int, rule: str) -> np.ndarray:
    """Crop a test image (H, W, C) to (size, size, C) by one of these rules.

    ``whole``: the centred square, see ``resize_and_center_crop``; ``authors``: size / (size + 32)
    of its side, bicubic, as in their ``verify.py``; a number such as ``0.875``: that fraction of
    its side, bicubic.
    """
    fraction = crop_fraction(rule, size)
    if fraction is None:
        return resize_and_center_crop(image, size)
    height, width = image.shape[:2]
    return resize_box_bicubic(image, center_box(height, width, fraction), size)


def corner_crops(image: np.ndarray, size: int, rule: str) -> list[np.ndarray]:
    """Cut squares as large as that of ``test_crop`` from the four corners of an image."""
    fraction = crop_fraction(rule, size)
    height, width = image.shape[:2]
    start, _, end, _ = center_box(height, width, fraction or 1.0)
    side = end - start
    whole = "whole" if fraction is None else "1.0"  # each with its own interpolation
    return [
        test_crop(image[top : top + side, left : left + side], size, whole)
        for top in (0, height - side)
        for left in (0, width - side)
    ]


def crop_fraction(rule: str, size: int) -> float | None:
    """Return the fraction of the short side that a rule keeps; None is all of it.

    Raises:
      InputError: if the rule is unknown.
    """
    if rule == "whole":
        return None
    if rule == "authors":
        return size / (size + MARGIN)
    try:
        fraction = float(rule)
    except ValueError:
        fraction = 0.0
    if not 0 < fraction <= 1:
        raise InputError(
            f"eval_crop must be 'whole', 'authors' or a fraction such as '0.875'; got {rule!r}"
        )
    return fraction
