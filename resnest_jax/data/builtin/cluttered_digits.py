"""Real digits among clutter as a TFDS builder: a task that small networks do not saturate.

A picture is made from data of scikit-learn: a patch of one of its two photographs, fragments of
three other digits and, over them, one whole digit, rotated, scaled, coloured and at a random place;
then noise. The class is that of the whole digit. Digits and photographs are split first, so that
test pictures share no digit and no part of a photograph with training pictures.
"""

import io
from collections.abc import Iterator
from typing import Any, cast

import cv2
import numpy as np
import tensorflow_datasets as tfds

# Part of the data set's definition: any other value is another data set, so another VERSION.
SPLIT_SEED = 0
PICTURES = {"train": 4, "test": 10}  # pictures per digit
SIZE = 32
FRAGMENTS = 3
MAX_TURN = 30.0  # degrees: a 6 must not become a 9
SIDES = (18.0, 26.0)  # of a digit, in pixels
DIMMED = 0.6  # brightness of the photograph; digits are bright, to be visible
COLOURS = {"fragment": (0.0, 255.0), "digit": (150.0, 255.0)}  # range per channel
NOISE = 8.0  # standard deviation, of 255

_DESCRIPTION = """\
Colour pictures of 32x32 pixels of one handwritten digit (scikit-learn's, 8x8 pixels) at a random
place, size, angle and colour, over a patch of a photograph (scikit-learn's two) and fragments of
other digits, with noise. 1,437 digits and two thirds of each photograph make the split 'train',
360 other digits and the other third the split 'test'.
"""


class ClutteredDigits(tfds.core.GeneratorBasedBuilder):
    """The TFDS data set ``cluttered_digits``: splits train (5,748) and test (3,600)."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            description=_DESCRIPTION,
            homepage="https://scikit-learn.org/stable/datasets/toy_dataset.html",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(SIZE, SIZE, 3), encoding_format="png"),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        # scikit-learn is slow to import, and only the first use of the data set needs it.
        from sklearn.datasets import load_digits, load_sample_images
        from sklearn.model_selection import train_test_split
        from sklearn.utils import Bunch

        digits = cast(Bunch, load_digits())
        photographs = load_sample_images().images
        border = 2 * photographs[0].shape[1] // 3
        parts = train_test_split(
            np.arange(len(digits.target)),
            test_size=0.2,
            stratify=digits.target,
            random_state=SPLIT_SEED,
        )
        backgrounds = (
            [photograph[:, :border] for photograph in photographs],
            [photograph[:, border:] for photograph in photographs],
        )
        return {
            split: self._generate_examples(
                digits.images[part] / 16, digits.target[part], background, PICTURES[split], seed
            )
            for seed, (split, part, background) in enumerate(
                zip(PICTURES, parts, backgrounds, strict=True)
            )
        }

    def _generate_examples(
        self,
        digits: np.ndarray,
        labels: np.ndarray,
        photographs: list[np.ndarray],
        pictures: int,
        seed: int,
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for index in range(pictures * len(digits)):
            rng = np.random.default_rng((SPLIT_SEED, seed, index))
            which = index % len(digits)
            picture = compose(rng, digits, which, photographs)
            png = cv2.imencode(".png", picture[..., ::-1])[1].tobytes()
            # A stream, not an array: TFDS would need TensorFlow to encode an array.
            yield index, {"image": io.BytesIO(png), "label": int(labels[which])}


def compose(
    rng: np.random.Generator, digits: np.ndarray, which: int, photographs: list[np.ndarray]
) -> np.ndarray:
    """Compose a picture, RGB uint8 (SIZE, SIZE, 3): background, fragments, digit ``which``, noise.

    Args:
      digits: (N, 8, 8), ink from 0 to 1.
      photographs: RGB uint8, each side at least ``SIZE``.
    """
    photograph = photographs[rng.integers(len(photographs))]
    top, left = (rng.integers(side - SIZE + 1) for side in photograph.shape[:2])
    picture = DIMMED * photograph[top : top + SIZE, left : left + SIZE].astype(np.float32)
    for _ in range(FRAGMENTS):
        fragment = digits[rng.integers(len(digits))].copy()
        # At most half of the rows: too few to be read as a digit.
        fragment[rng.integers(3, 5) :] = 0
        picture = _draw(rng, picture, fragment, rng.uniform(0, 360), COLOURS["fragment"])
    angle = rng.uniform(-MAX_TURN, MAX_TURN)
    picture = _draw(rng, picture, digits[which], angle, COLOURS["digit"])
    picture += rng.normal(0, NOISE, picture.shape)
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def _draw(
    rng: np.random.Generator,
    picture: np.ndarray,
    ink: np.ndarray,
    angle: float,
    colours: tuple[float, float],
) -> np.ndarray:
    """Draw ink over the picture at a random place, size and colour."""
    side = rng.uniform(*SIDES)
    centre = rng.uniform(side / 2, SIZE - side / 2, 2)
    matrix = cv2.getRotationMatrix2D((3.5, 3.5), angle, side / 8)
    matrix[:, 2] += centre - 3.5 - 0.5
    cover = cv2.warpAffine(ink.astype(np.float32), matrix, (SIZE, SIZE), flags=cv2.INTER_LINEAR)
    cover = cover[..., None]
    colour = rng.uniform(*colours, 3).astype(np.float32)
    return (1 - cover) * picture + cover * colour
