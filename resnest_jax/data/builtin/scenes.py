"""Scenes of handwritten digits on photographs, with the exact pixels of each digit.

The digits and photographs are scikit-learn's. A scene is a part of a photograph, darkened and
perhaps mirrored, and one to ``MOST`` digits over it, each enlarged from 8x8 pixels, turned,
coloured and at a random place; a digit may hide a part of an earlier one; then noise. Digits and
photographs are split first, so that no digit and no part of a photograph is in both splits.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, cast

import numpy as np
from PIL import Image

# Part of the data set's definition: any other value is another data set, so another VERSION, as is
# any other form of its files.
VERSION = "1.2.0"
SEED = 0
SCENES = {"training": 4800, "validation": 300}
HELD_OUT = 0.2  # of the digits of each class
SIZE = 112  # of a scene, in pixels
MOST = 3
TRIES = 20  # to find a place for a digit
SIDES = (66.0, 88.0)  # of the 8x8 pixels of a digit
STRETCH = 1.1  # largest ratio of height and width
MAX_TURN = 10.0  # degrees: a 6 must not become a 9
HIDDEN = 0.05  # largest share of a digit that each later one may hide
INK = 0.25  # a pixel is the digit's from this much ink on
COLOURS = (100.0, 255.0)  # of a digit, in each channel
CONTRAST = 60.0  # by which a digit is brighter than what is behind it, at least
BRIGHTNESS = (0.3, 0.6)  # factor of the photograph
NOISE = 6.0  # standard deviation

Place = tuple[slice, slice]

_LUMA = np.array([0.299, 0.587, 0.114])
_BORDER = 2  # pixels of paper around the 8x8: bicubic interpolation takes 4x4


class Digit(NamedTuple):
    """A digit of a scene.

    Attributes:
      value: 0 to 9.
      mask: bool (SIZE, SIZE), its visible pixels; at least one.
    """

    value: int
    mask: np.ndarray


class Scene(NamedTuple):
    """A picture, RGB uint8 (SIZE, SIZE, 3), and its digits, the hindmost first."""

    image: np.ndarray
    digits: tuple[Digit, ...]


class Material(NamedTuple):
    """What the scenes of a split are made of.

    Attributes:
      ink: uint8 (N, 8, 8), 255 is full.
      values: int (N,), 0 to 9.
      photographs: RGB uint8, each side at least ``SIZE``.
    """

    ink: np.ndarray
    values: np.ndarray
    photographs: Sequence[np.ndarray]


def scenes(split: str) -> Iterator[Scene]:
    """Yield the scenes of a split, ``training`` or ``validation``: always the same ones."""
    material = materials()[split]
    for index in range(SCENES[split]):
        # NumPy never changes the numbers of RandomState.
        seed = (SEED, list(SCENES).index(split), index)
        yield compose(np.random.RandomState(seed), material)


def materials() -> dict[str, Material]:
    """Return the material of each split; they share nothing."""
    # Slow to import, and only the first use of the data set needs it.
    from sklearn.datasets import load_digits, load_sample_images
    from sklearn.utils import Bunch

    digits = cast(Bunch, load_digits())
    ink = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    photographs = load_sample_images().images
    border = 2 * photographs[0].shape[1] // 3
    rng = np.random.RandomState(SEED)
    held_out = np.zeros(len(ink), bool)
    for value in range(10):
        of_value = rng.permutation(np.flatnonzero(digits.target == value))
        held_out[of_value[: round(HELD_OUT * len(of_value))]] = True
    return {
        "training": Material(
            ink[~held_out], digits.target[~held_out], [p[:, :border] for p in photographs]
        ),
        "validation": Material(
            ink[held_out], digits.target[held_out], [p[:, border:] for p in photographs]
        ),
    }


def compose(rng: np.random.RandomState, material: Material) -> Scene:
    """Compose a scene."""
    picture = _ground(rng, material.photographs[rng.randint(len(material.photographs))])
    digits: list[Digit] = []
    for _ in range(rng.randint(1, MOST + 1)):
        which = rng.randint(len(material.ink))
        cover = _place(rng, _cover(rng, material.ink[which]), digits)
        if cover is None:  # there is no room for it
            continue
        mask = cover >= 0.5
        digits = [digit._replace(mask=digit.mask & ~mask) for digit in digits]
        digits.append(Digit(int(material.values[which]), mask))
        colour = _colour(rng, picture[mask].mean(0) @ _LUMA)
        picture += cover[..., None] * (colour - picture)
    picture += rng.normal(0, NOISE, picture.shape)
    return Scene(np.clip(np.rint(picture), 0, 255).astype(np.uint8), tuple(digits))


def _hides_little(mask: np.ndarray, place: Place, digits: Sequence[Digit]) -> bool:
    """Return whether a mask at a place leaves most of each digit visible."""
    return all(
        np.count_nonzero(digit.mask[place] & mask) <= HIDDEN * np.count_nonzero(digit.mask)
        for digit in digits
    )


def _ground(rng: np.random.RandomState, photograph: np.ndarray) -> np.ndarray:
    """Return a square of a photograph as float64 (SIZE, SIZE, 3)."""
    height, width = photograph.shape[:2]
    side = rng.randint(SIZE, min(height, width) + 1)
    left, top = rng.randint(width - side + 1), rng.randint(height - side + 1)
    box = (left, top, left + side, top + side)
    square = Image.fromarray(photograph).resize((SIZE, SIZE), Image.Resampling.BILINEAR, box)
    pixels = np.asarray(square, np.float64)
    pixels = pixels[:, ::-1] if rng.randint(2) else pixels
    return np.clip(rng.uniform(*BRIGHTNESS) * pixels, 0, 255)


def _cover(rng: np.random.RandomState, ink: np.ndarray) -> np.ndarray:
    """Return how much of each pixel of a rectangle a digit covers, from 0 to 1."""
    side = rng.uniform(*SIDES)
    stretch = STRETCH ** rng.uniform(-0.5, 0.5)
    angle = np.deg2rad(rng.uniform(-MAX_TURN, MAX_TURN))
    scales = np.array([side / stretch, side * stretch]) / ink.shape[0]  # of x and y
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    turned = np.abs(turn.T) @ scales * ink.shape[0]  # width and height of the turned square
    size = np.minimum(np.ceil(turned), SIZE).astype(int)
    matrix = turn / scales[:, None]  # from the rectangle to the ink
    paper = np.pad(ink, _BORDER)
    offset = np.array(paper.shape[::-1]) / 2 - matrix @ size / 2
    coefficients = np.column_stack([matrix, offset]).ravel().tolist()
    enlarged = Image.fromarray(paper).transform(
        tuple(size.tolist()), Image.Transform.AFFINE, coefficients, Image.Resampling.BICUBIC
    )
    # The ink falls from full to none over a pixel of the 8x8, the cover over one of the scene.
    sharpness = side / ink.shape[0]
    return np.clip((np.asarray(enlarged) / 255 - INK) * sharpness + 0.5, 0, 1)


def _place(
    rng: np.random.RandomState, cover: np.ndarray, digits: Sequence[Digit]
) -> np.ndarray | None:
    """Return the cover at a random place of the scene, (SIZE, SIZE), or None if there is none."""
    height, width = cover.shape
    mask = cover >= 0.5
    for _ in range(TRIES):
        top, left = rng.randint(SIZE - height + 1), rng.randint(SIZE - width + 1)
        place = np.s_[top : top + height, left : left + width]
        if _hides_little(mask, place, digits):
            placed = np.zeros((SIZE, SIZE))
            placed[place] = cover
            return placed
    return None


def _colour(rng: np.random.RandomState, behind: float) -> np.ndarray:
    """Return a random colour that is brighter than what is behind it."""
    while True:
        colour = rng.uniform(*COLOURS, 3)
        if colour @ _LUMA >= behind + CONTRAST:
            return colour
