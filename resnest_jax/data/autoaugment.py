"""AutoAugment and RandAugment: the operators, with Pillow, and the two policies."""

import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

FILL = (128, 128, 128)  # for pixels that a geometric operator uncovers
LEVELS = 9  # the magnitudes of AutoAugment's paper are 0 to 9
MAGNITUDES = 30  # those of RandAugment are 0 to 30, as in the authors' PyTorch code

Operator = Callable[[Image.Image, float, np.random.Generator], Image.Image]


def _affine(image: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=FILL
    )


def _sign(rng: np.random.Generator) -> int:
    return 1 if rng.random() < 0.5 else -1


def _shear_x(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    return _affine(image, (1, _sign(rng) * 0.3 * strength, 0, 0, 1, 0))


def _shear_y(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    return _affine(image, (1, 0, 0, _sign(rng) * 0.3 * strength, 1, 0))


def _translate_x(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    return _affine(image, (1, 0, _sign(rng) * 150 / 331 * strength * image.width, 0, 1, 0))


def _translate_y(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    return _affine(image, (1, 0, 0, 0, 1, _sign(rng) * 150 / 331 * strength * image.height))


def _rotate(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    degrees = _sign(rng) * 30 * strength
    return image.rotate(degrees, Image.Resampling.BILINEAR, fillcolor=FILL)


def _solarize(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    return ImageOps.solarize(image, math.ceil(256 * (1 - strength)))


def _enhance(kind: Callable[[Image.Image], ImageEnhance._Enhance]) -> Operator:
    def operator(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
        return kind(image).enhance(1 + _sign(rng) * 0.9 * strength)

    return operator


# Name -> operator(image, strength in [0, 1], rng): the ranges of AutoAugment (arXiv 1805.09501,
# table 6); a larger strength changes the image more.
OPERATORS: dict[str, Operator] = {
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": _translate_x,
    "translate_y": _translate_y,
    "rotate": _rotate,
    "auto_contrast": lambda image, strength, rng: ImageOps.autocontrast(image),
    "equalize": lambda image, strength, rng: ImageOps.equalize(image),
    "invert": lambda image, strength, rng: ImageOps.invert(image),
    "posterize": lambda image, strength, rng: ImageOps.posterize(image, 8 - round(4 * strength)),
    "solarize": _solarize,
    "color": _enhance(ImageEnhance.Color),
    "contrast": _enhance(ImageEnhance.Contrast),
    "brightness": _enhance(ImageEnhance.Brightness),
    "sharpness": _enhance(ImageEnhance.Sharpness),
}

# The ImageNet policy (arXiv 1805.09501, table 9): pairs of (operator, probability, level). Five
# pairs occur twice, as in the code that trained the published networks.
IMAGENET_POLICY = (
    (("posterize", 0.4, 8), ("rotate", 0.6, 9)),
    (("solarize", 0.6, 5), ("auto_contrast", 0.6, 5)),
    (("equalize", 0.8, 8), ("equalize", 0.6, 3)),
    (("posterize", 0.6, 7), ("posterize", 0.6, 6)),
    (("equalize", 0.4, 7), ("solarize", 0.2, 4)),
    (("equalize", 0.4, 4), ("rotate", 0.8, 8)),
    (("solarize", 0.6, 3), ("equalize", 0.6, 7)),
    (("posterize", 0.8, 5), ("equalize", 1.0, 2)),
    (("rotate", 0.2, 3), ("solarize", 0.6, 8)),
    (("equalize", 0.6, 8), ("posterize", 0.4, 6)),
    (("rotate", 0.8, 8), ("color", 0.4, 0)),
    (("rotate", 0.4, 9), ("equalize", 0.6, 2)),
    (("equalize", 0.0, 7), ("equalize", 0.8, 8)),
    (("invert", 0.6, 4), ("equalize", 1.0, 8)),
    (("color", 0.6, 4), ("contrast", 1.0, 8)),
    (("rotate", 0.8, 8), ("color", 1.0, 2)),
    (("color", 0.8, 8), ("solarize", 0.8, 7)),
    (("sharpness", 0.4, 7), ("invert", 0.6, 8)),
    (("shear_x", 0.6, 5), ("equalize", 1.0, 9)),
    (("color", 0.4, 0), ("equalize", 0.6, 3)),
    (("equalize", 0.4, 7), ("solarize", 0.2, 4)),
    (("solarize", 0.6, 5), ("auto_contrast", 0.6, 5)),
    (("invert", 0.6, 4), ("equalize", 1.0, 8)),
    (("color", 0.6, 4), ("contrast", 1.0, 8)),
    (("equalize", 0.8, 8), ("equalize", 0.6, 3)),
)


def auto_augment(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Apply a random sub-policy of ImageNet to a uint8 (H, W, 3) image."""
    picture = Image.fromarray(image)
    for name, probability, level in IMAGENET_POLICY[rng.integers(len(IMAGENET_POLICY))]:
        if rng.random() < probability:
            picture = OPERATORS[name](picture, level / LEVELS, rng)
    return np.asarray(picture)


def rand_augment(
    image: np.ndarray, rng: np.random.Generator, layers: int, magnitude: float
) -> np.ndarray:
    """Apply random operators, drawn uniformly, to a uint8 (H, W, 3) image (arXiv 1909.13719).

    Magnitude 30 is the strongest. Where others count to 10, their 7 is 21 here.
    """
    picture = Image.fromarray(image)
    for name in rng.choice(list(OPERATORS), layers):
        picture = OPERATORS[name](picture, magnitude / MAGNITUDES, rng)
    return np.asarray(picture)
