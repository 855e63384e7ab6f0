"""Records for tests of the data layer, and helpers for their batches."""

import io
import itertools

import grain
import numpy as np
from PIL import Image

from resnest_jax.data.loader import train_batches
from resnest_jax.data.order import shuffled


def encode(array, mode=None, file_format="PNG", **kwargs):
    """Encode an image with PIL; the package decodes with OpenCV."""
    image = Image.fromarray(array)
    buffer = io.BytesIO()
    (image if mode is None else image.convert(mode)).save(buffer, file_format, **kwargs)
    return buffer.getvalue()


class Numbered:
    """Record i is an 8x8 image with a gradient that starts at i, and label i; some are broken."""

    def __init__(self, count, broken=()):
        self.count = count
        self.broken = broken

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        pixels = (index + 3 * np.arange(64).reshape(8, 8)).astype(np.uint8)
        image = b"broken" if index in self.broken else encode(pixels)
        return {"image": image, "label": index, "key": self.key(index)}

    def key(self, index):
        return f"numbered#{index}"


def take(batches, count):
    """Return the first batches and close the generator."""
    try:
        return list(itertools.islice(batches, count))
    finally:
        batches.close()


def labels_of(batches):
    return np.concatenate([batch["label"] for batch in batches]).tolist()


def assert_same_batches(actual, expected):
    assert len(actual) == len(expected)
    for a, b in zip(actual, expected, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])


def write_images(folder, count, suffix=".png"):
    folder.mkdir(parents=True)
    for index in range(count):
        (folder / f"{index:02d}{suffix}").write_bytes(encode(np.zeros((4, 4), np.uint8)))


def train(images, transform, shard, *, seed, start_step=0, repeats=1, workers=0):
    """Return training batches of images."""
    order = shuffled(grain.MapDataset.source(images), seed, repeats)
    elements = order.random_map(transform)
    return train_batches(elements, shard, start_step=start_step, workers=workers)
