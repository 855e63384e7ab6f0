"""The embedded data set: scikit-learn's handwritten digits as a TFDS builder."""

import io

import cv2
import numpy as np
import tensorflow_datasets as tfds

SPLIT_SEED = 0


class SklearnDigits(tfds.core.GeneratorBasedBuilder):
    """1,797 real handwritten digits of 8x8 pixels; a stratified fifth is held out as ``test``."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Grey values 0..16 scaled to 0..255; 1437 train, 360 test."}

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            description=(
                "Handwritten digits that ship with scikit-learn (the test part of the UCI set "
                "'Optical Recognition of Handwritten Digits'), split by a fixed seed."
            ),
            citation=(
                "E. Alpaydin and C. Kaynak (1998). Optical Recognition of Handwritten Digits. "
                "UCI Machine Learning Repository. https://doi.org/10.24432/C50P49"
            ),
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager):
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        digits = load_digits()
        train, test = train_test_split(
            np.arange(len(digits.target)),
            test_size=0.2,
            stratify=digits.target,
            random_state=SPLIT_SEED,
        )
        return {
            "train": self._generate_examples(digits, np.sort(train)),
            "test": self._generate_examples(digits, np.sort(test)),
        }

    def _generate_examples(self, digits, indices):
        for index in indices:
            grey = np.round(digits.images[index] * (255 / 16)).astype(np.uint8)
            png = cv2.imencode(".png", grey)[1].tobytes()
            yield int(index), {"image": io.BytesIO(png), "label": int(digits.target[index])}
