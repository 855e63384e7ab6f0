"""scikit-learn's handwritten digits as a TFDS builder: real images with nothing to download."""

import io
from collections.abc import Iterable, Iterator
from typing import Any, cast

import cv2
import numpy as np
import tensorflow_datasets as tfds

# Part of the data set's definition: another seed is another split, so another VERSION.
SPLIT_SEED = 0

_DESCRIPTION = """\
1,797 grey images of 8x8 pixels of the handwritten digits 0 to 9, as shipped with scikit-learn:
the test set of the UCI 'Optical Recognition of Handwritten Digits'. A stratified fifth of them
is held out as the split 'test'.
"""

_CITATION = """\
@misc{alpaydin1998optical,
  author = {Alpaydin, E. and Kaynak, C.},
  title = {Optical Recognition of Handwritten Digits},
  year = {1998},
  howpublished = {UCI Machine Learning Repository},
  doi = {10.24432/C50P49},
  url = {https://archive.ics.uci.edu/dataset/80}
}
"""


class SklearnDigits(tfds.core.GeneratorBasedBuilder):
    """The TFDS data set ``sklearn_digits``: splits train (1,437) and test (360)."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            description=_DESCRIPTION,
            citation=_CITATION,
            homepage="https://archive.ics.uci.edu/dataset/80",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        # scikit-learn is slow to import, and only the first use of the data set needs it.
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
        from sklearn.utils import Bunch

        digits = cast(Bunch, load_digits())
        train, test = train_test_split(
            np.arange(len(digits.target)),
            test_size=0.2,
            stratify=digits.target,
            random_state=SPLIT_SEED,
        )
        return {
            "train": self._generate_examples(digits, train),
            "test": self._generate_examples(digits, test),
        }

    def _generate_examples(
        self, digits: Any, indices: Iterable[int]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for index in map(int, indices):
            # Grey values 0..16 become 0..255.
            grey = np.round(digits.images[index] * (255 / 16)).astype(np.uint8)
            png = cv2.imencode(".png", grey)[1].tobytes()
            # A stream, not an array: TFDS would need TensorFlow to encode an array.
            yield index, {"image": io.BytesIO(png), "label": int(digits.target[index])}
