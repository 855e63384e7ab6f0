"""Time reading and augmenting JPEGs with this project's pipeline and with tf.data, in turns.

    python -m experiments.input_benchmark --images=1000

Photographs of about 500 px, quality 90, random crops at 224 px, flips. The rows take turns, so that
other load on the machine affects all of them. A row has the median over the rounds, the same per
core, and the number of such cores that feed 7,000 images per second. Rows of tf.data need
TensorFlow (``pip install tensorflow-cpu``); without it they are skipped.
"""

import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grain
from absl import flags

from experiments.photos import write_photos
from experiments.timing import CORES
from resnest_jax import cli
from resnest_jax.data.images import Images
from resnest_jax.data.loader import HostShard, train_batches
from resnest_jax.data.order import shuffled
from resnest_jax.data.sources import open_dataset
from resnest_jax.tasks.classification.transforms import TrainTransform

FLAGS = flags.FlagValues()
IMAGES = flags.DEFINE_integer(
    "images", 1000, "Images per round.", lower_bound=64, flag_values=FLAGS
)
ROUNDS = flags.DEFINE_integer(
    "rounds", 5, "Number of timed rounds.", lower_bound=1, flag_values=FLAGS
)
BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", 64, "Images per batch.", lower_bound=1, flag_values=FLAGS
)
RECIPE = flags.DEFINE_bool("recipe", True, "Also time the paper's augmentation.", flag_values=FLAGS)

SIZE = 224
WANTED = 7000  # images/s: the roofline of a GPU for ResNeSt-50

PLAIN = TrainTransform(SIZE, crop="inception", flip=True)
PAPER = TrainTransform(
    SIZE, crop="inception", flip=True, policy="autoaugment", jitter=0.4, lighting=0.1
)


def ours(folder: Path, transform: TrainTransform, workers: int) -> Callable[[], Iterator]:
    """Return a function that starts this project's pipeline."""
    images = Images(open_dataset(f"folder:{folder}").train)
    shard = HostShard(BATCH_SIZE.value)
    elements = shuffled(grain.MapDataset.source(images), seed=0).random_map(transform)
    return lambda: train_batches(elements, shard, workers=workers)


def tf_data(folder: Path, antialias: bool) -> Callable[[], Iterator]:
    """Return a function that starts tf.data, which decodes only the crop, as for ImageNet."""
    import tensorflow as tf

    paths = [str(path) for path in sorted(folder.glob("train/*/*.jpg"))]

    def load(path):
        encoded = tf.io.read_file(path)
        shape = tf.image.extract_jpeg_shape(encoded)
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            shape,
            tf.zeros((1, 0, 4)),
            area_range=(0.08, 1.0),
            aspect_ratio_range=(3 / 4, 4 / 3),
            max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )
        window = tf.concat([begin[:2], size[:2]], 0)
        image = tf.image.decode_and_crop_jpeg(encoded, window, channels=3)
        image = tf.image.resize(image, (SIZE, SIZE), antialias=antialias)
        image = tf.image.random_flip_left_right(image)
        return tf.cast(tf.clip_by_value(image, 0, 255), tf.uint8)

    dataset = tf.data.Dataset.from_tensor_slices(paths).shuffle(len(paths)).repeat()
    dataset = dataset.map(load, tf.data.AUTOTUNE).batch(BATCH_SIZE.value)
    return lambda: dataset.prefetch(tf.data.AUTOTUNE).as_numpy_iterator()


def rate(start: Callable[[], Iterator]) -> float:
    """Return the images per second of one round, after its first batches."""
    batches = start()
    for _ in range(4):
        next(batches)
    count = max(1, IMAGES.value // BATCH_SIZE.value)
    begun = time.perf_counter()
    for _ in range(count):
        next(batches)
    elapsed = time.perf_counter() - begun
    getattr(batches, "close", lambda: None)()
    return count * BATCH_SIZE.value / elapsed


def main(_: list[str]) -> None:
    """Time the rows and print the table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print(f"writing {IMAGES.value} photographs", flush=True)
        write_photos(folder, IMAGES.value, 20)
        rows = {"ours, threads": ours(folder, PLAIN, 0), "ours, 2 workers": ours(folder, PLAIN, 2)}
        if RECIPE.value:
            rows["ours, paper's augmentation, 2 workers"] = ours(folder, PAPER, 2)
        if importlib.util.find_spec("tensorflow"):
            rows["tf.data, antialiased"] = tf_data(folder, True)
            rows["tf.data, not antialiased"] = tf_data(folder, False)
        else:
            print("tf.data is skipped: TensorFlow is not installed")
        rates = {row: [] for row in rows}
        for index in range(ROUNDS.value):
            for row in list(rows)[:: 1 if index % 2 else -1]:
                rates[row].append(rate(rows[row]))
            print(f"round {index + 1} of {ROUNDS.value} is timed", flush=True)
    print(f"{IMAGES.value} JPEGs of about 500 px, {CORES} cores, medians of {ROUNDS.value} rounds")
    print("| | images/s | range | images/s per core | cores for 7,000 images/s |")
    print("|---|---|---|---|---|")
    for row, values in rates.items():
        median = statistics.median(values)
        print(
            f"| {row} | {median:.0f} | {min(values):.0f} - {max(values):.0f} "
            f"| {median / CORES:.0f} | {WANTED / median * CORES:.0f} |"
        )


if __name__ == "__main__":
    cli.run(main, FLAGS)
