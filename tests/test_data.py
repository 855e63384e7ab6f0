"""The data layer against scikit-learn's arrays, PIL's files and counting."""

import collections
import io
import itertools
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from resnest_jax.data.augment import random_flip, random_shift
from resnest_jax.data.batches import ImageBatches
from resnest_jax.data.crops import resize_and_center_crop
from resnest_jax.data.images import Images, decode
from resnest_jax.data.loader import Share, eval_batches, train_batches, train_keys
from resnest_jax.data.sources.records import Dataset, open_dataset
from resnest_jax.errors import InputError
from resnest_jax.tasks.classification.transforms import EvalTransform, TrainTransform


def encode(array, mode=None, file_format="PNG", **kwargs):
    """Encodes with PIL what the package decodes with OpenCV."""
    image = Image.fromarray(array)
    buffer = io.BytesIO()
    (image if mode is None else image.convert(mode)).save(buffer, file_format, **kwargs)
    return buffer.getvalue()


class Numbered:
    """Record i is an 8x8 image with a gradient that starts at i, labelled i; one may be broken."""

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


class TrainOnly(tfds.core.GeneratorBasedBuilder):
    """A TFDS data set of ten images and no held-out split."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            description="Ten grey images.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        records = Numbered(10)
        for index in range(len(records)):
            record = records[index]
            yield index, {"image": io.BytesIO(record["image"]), "label": record["label"]}


def take(batches, count):
    """The first batches; the generator is closed."""
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


def read(records, field):
    return [records[index][field] for index in range(len(records))]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("tfds")


# Digits and TFDS


def test_digits_are_those_of_sklearn_in_a_stratified_fifth(data_dir):
    from sklearn.datasets import load_digits

    dataset = open_dataset("sklearn_digits", data_dir=data_dir)
    assert dataset.class_names == tuple("0123456789")
    assert (len(dataset.train), len(dataset.eval)) == (1437, 360)

    def contents(records):
        return collections.Counter(
            (decode(record).tobytes(), record["label"])
            for record in (records[index] for index in range(len(records)))
        )

    digits = load_digits()
    grey = np.floor(digits.images * 255 / 16 + 0.5).astype(np.uint8)
    rgb = np.repeat(grey[..., None], 3, axis=-1)
    expected = collections.Counter(
        (image.tobytes(), int(label)) for image, label in zip(rgb, digits.target, strict=True)
    )
    # Equal as multisets: nothing is lost, nothing is in both splits.
    assert contents(dataset.train) + contents(dataset.eval) == expected

    held_out = np.bincount(read(dataset.eval, "label"), minlength=10)
    assert np.all(np.abs(held_out - np.bincount(digits.target) / 5) < 1)


def test_tfds_directory_comes_from_the_environment(tmp_path):
    code = "from resnest_jax.data.sources.records import open_dataset as o; o('sklearn_digits')"
    environment = {**os.environ, "TFDS_DATA_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True)
    assert (tmp_path / "sklearn_digits" / "1.0.0" / "dataset_info.json").is_file()


def test_tfds_splits(data_dir):
    dataset = open_dataset("train_only", data_dir=data_dir)
    assert (len(dataset.train), len(dataset.eval)) == (8, 2)
    labels = read(dataset.train, "label") + read(dataset.eval, "label")
    assert sorted(labels) == list(range(10))
    assert dataset.eval[1]["key"] == "train_only/train[80%:]#1"

    dataset = open_dataset(
        "sklearn_digits", train_split="train[:100]", eval_split="train[100:]", data_dir=data_dir
    )
    assert (len(dataset.train), len(dataset.eval)) == (100, 1337)


@pytest.mark.parametrize(
    ("name", "splits", "message"),
    [
        ("no_such_set", {}, "unknown data set 'no_such_set'.*sklearn_digits.*folder:PATH"),
        ("not a name", {}, "cannot open the data set 'not a name'"),
        ("sklearn_digits:9.9.9", {}, "9.9.9.*only: 1.0.0"),
        ("imdb_reviews", {}, "imdb_reviews.*not for image classification.*'label', 'text'"),
        ("sklearn_digits", {"train_split": "tarin"}, "'tarin'.*'train': 1437, 'test': 360"),
        ("sklearn_digits", {"eval_split": "test[:0]"}, r"'test\[:0\]'.*empty"),
        ("train_only", {"train_split": "train[:90%]"}, "eval_split 'auto'.*name one of"),
        ("imagenet2012", {}, "cannot prepare the data set 'imagenet2012'.*ILSVRC2012_img_train"),
    ],
)
def test_tfds_errors_are_one_line(data_dir, name, splits, message):
    with pytest.raises(InputError, match=message) as caught:
        open_dataset(name, data_dir=data_dir, **splits)
    assert "\n" not in str(caught.value)


def test_data_set_that_needs_tensorflow_says_so(tmp_path, monkeypatch):
    def needs_tensorflow(self):
        raise ImportError("No module named 'tensorflow'")

    monkeypatch.setattr(TrainOnly, "_generate_examples", needs_tensorflow)
    with pytest.raises(InputError, match=r"train_only.*pip install 'resnest_jax.prepare"):
        open_dataset("train_only", data_dir=tmp_path)


def test_data_set_prepared_as_tfrecord_says_so(tmp_path):
    open_dataset("train_only", data_dir=tmp_path)
    info = tmp_path / "train_only" / "1.0.0" / "dataset_info.json"
    info.write_text(json.dumps({**json.loads(info.read_text()), "fileFormat": "tfrecord"}))
    with pytest.raises(InputError, match=r"as tfrecord.*TFDS_DATA_DIR name another"):
        open_dataset("train_only", data_dir=tmp_path)


def test_unlabelled_record_is_an_error(tmp_path, monkeypatch):
    def unlabelled(self):
        yield 0, {"image": io.BytesIO(Numbered(1)[0]["image"]), "label": -1}

    monkeypatch.setattr(TrainOnly, "_generate_examples", unlabelled)
    dataset = open_dataset("train_only", train_split="train", eval_split="train", data_dir=tmp_path)
    with pytest.raises(InputError, match="train_only/train#0 has no label"):
        dataset.train[0]


# Folders


@pytest.mark.parametrize("eval_name", ["validation", "val", "test"])
def test_folder_with_splits(tmp_path, eval_name):
    write_images(tmp_path / "train" / "dog", 2, ".JPEG")
    write_images(tmp_path / "train" / "cat", 3, ".png")
    write_images(tmp_path / eval_name / "dog", 1, ".Jpg")
    write_images(tmp_path / "train" / ".hidden", 1)
    (tmp_path / "train" / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "train" / "cat" / ".00.png").write_text("no image")

    dataset = open_dataset(f"folder:{tmp_path}")
    assert dataset.class_names == ("cat", "dog")
    train = [str(tmp_path / "train" / "cat" / f"{i:02d}.png") for i in range(3)]
    train += [str(tmp_path / "train" / "dog" / f"{i:02d}.JPEG") for i in range(2)]
    assert read(dataset.train, "key") == train
    assert read(dataset.train, "label") == [0, 0, 0, 1, 1]
    # A class without evaluation images keeps the other labels where they are.
    assert read(dataset.eval, "key") == [str(tmp_path / eval_name / "dog" / "00.Jpg")]
    assert dataset.eval[0]["label"] == 1
    assert decode(dataset.eval[0]).shape == (4, 4, 3)


def test_folder_with_named_splits(tmp_path):
    for name, count in [("train", 1), ("val", 2), ("test", 3), ("small", 4)]:
        write_images(tmp_path / name / "cat", count)
    dataset = open_dataset(f"folder:{tmp_path}", train_split="small", eval_split="test")
    assert (len(dataset.train), len(dataset.eval)) == (4, 3)
    assert len(open_dataset(f"folder:{tmp_path}").eval) == 2  # `val` before `test`.


def test_folder_without_splits_holds_out_every_fifth_image_of_each_class(tmp_path):
    write_images(tmp_path / "cat", 11)
    write_images(tmp_path / "dog", 3)
    write_images(tmp_path / "eel", 5)
    dataset = open_dataset(f"folder:{tmp_path}")
    held_out = [("cat", 4), ("cat", 9), ("eel", 4)]
    assert read(dataset.eval, "key") == [str(tmp_path / c / f"{i:02d}.png") for c, i in held_out]
    assert read(dataset.eval, "label") == [0, 0, 2]
    everything = sorted(str(path) for path in tmp_path.glob("*/*.png"))
    assert sorted(read(dataset.train, "key") + read(dataset.eval, "key")) == everything


def _folder_missing(root):
    return root / "absent", root / "absent"


def _folder_empty(root):
    return root, root


def _folder_of_loose_images(root):
    write_images(root / "images", 9)
    return root / "images", root / "images"


def _folder_with_an_empty_class(root):
    write_images(root / "cat", 9)
    (root / "dog").mkdir()
    return root, root / "dog"


def _folder_with_too_few_to_hold_out(root):
    write_images(root / "cat", 4)
    return root, root


def _folder_without_evaluation(root):
    write_images(root / "train" / "cat", 9)
    return root, root


def _folder_with_an_unknown_class(root):
    write_images(root / "train" / "cat", 2)
    write_images(root / "val" / "dog", 2)
    return root, root / "val"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_folder_missing, "no such folder.*expected PATH/train/CLASS"),
        (_folder_empty, "no class folders.*expected PATH/train/CLASS"),
        (_folder_of_loose_images, "no class folders.*expected PATH/train/CLASS"),
        (_folder_with_an_empty_class, "no images.*expected PATH/train/CLASS"),
        (_folder_with_too_few_to_hold_out, "hold one out.*expected PATH/train/CLASS"),
        (_folder_without_evaluation, "'validation' or 'val' or 'test'.*has .'train'."),
        (_folder_with_an_unknown_class, "training has not: dog"),
    ],
)
def test_folder_errors_name_the_path(tmp_path, make, message):
    opened, named = make(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        open_dataset(f"folder:{opened}")
    assert str(named) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_named_split_of_a_folder_has_to_exist(tmp_path):
    write_images(tmp_path / "train" / "cat", 2)
    with pytest.raises(InputError, match="eval_split 'dev'"):
        open_dataset(f"folder:{tmp_path}", eval_split="dev")


def test_image_that_vanished_is_named(tmp_path):
    write_images(tmp_path / "cat", 5)
    dataset = open_dataset(f"folder:{tmp_path}")
    (tmp_path / "cat" / "04.png").unlink()
    with pytest.raises(InputError, match=r"04\.png"):
        dataset.eval[0]


def test_records_pickle_without_images(tmp_path, data_dir):
    write_images(tmp_path / "cat", 10)
    for name in (f"folder:{tmp_path}", "sklearn_digits"):
        records = open_dataset(name, data_dir=data_dir).train
        pickled = pickle.dumps(records)
        assert len(pickled) < 10_000
        assert pickle.loads(pickled)[3] == records[3]


# Transforms

_GREY = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
_RGB = np.stack([_GREY, _GREY // 2, 255 - _GREY], axis=-1)
_GREY_AS_RGB = np.repeat(_GREY[..., None], 3, axis=-1)


@pytest.mark.parametrize(
    ("encoded", "expected"),
    [
        (encode(_GREY), _GREY_AS_RGB),
        (encode(_RGB), _RGB),
        (encode(np.dstack([_RGB, _GREY])), _RGB),
        (encode(np.dstack([_GREY, _GREY])), _GREY_AS_RGB),
        (encode(_GREY, mode="P"), _GREY_AS_RGB),
        (encode(_GREY.astype(np.uint16) * 256 + 255), _GREY_AS_RGB),
    ],
    ids=["grey", "rgb", "rgba", "grey-alpha", "palette", "grey16"],
)
def test_decode_png(encoded, expected):
    image = decode({"image": encoded, "key": "k"})
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, expected)


def test_decode_jpeg_is_rgb_and_ignores_the_orientation():
    red = np.zeros((16, 32, 3), np.uint8)
    red[..., 0] = 200
    exif = Image.Exif()
    exif[0x0112] = 6  # "Turn me by 90 degrees."
    image = decode({"image": encode(red, file_format="JPEG", exif=exif), "key": "k"})
    assert image.shape == (16, 32, 3)
    np.testing.assert_allclose(image.mean((0, 1)), [200, 0, 0], atol=3)


@pytest.mark.parametrize(
    "encoded",
    [b"", b"no image", encode(_RGB)[:60], encode(np.zeros((64, 64), np.uint8))[:-30]],
    ids=["empty", "text", "header", "truncated"],
)
def test_decode_names_the_record_it_cannot_decode(encoded):
    with pytest.raises(InputError, match=r"some/file\.png"):
        decode({"image": encoded, "key": "some/file.png"})


@pytest.mark.parametrize("shape", [(20, 8), (8, 20), (8, 8), (8, 9)])
def test_centre_crop_at_the_same_scale_is_a_slice(shape):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    top, left = (shape[0] - 8) // 2, (shape[1] - 8) // 2
    expected = image[top : top + 8, left : left + 8]
    np.testing.assert_array_equal(resize_and_center_crop(image, 8), expected)


def test_shrinking_averages_and_enlarging_interpolates():
    image = np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)
    blocks = image[:, 4:20].reshape(8, 2, 8, 2, 3).mean((1, 3))
    np.testing.assert_allclose(resize_and_center_crop(image, 8), blocks, atol=0.51)

    ramp = np.broadcast_to(np.arange(0, 160, 10, dtype=np.uint8)[None, :, None], (16, 16, 3))
    enlarged = resize_and_center_crop(ramp, 32)
    assert enlarged.shape == (32, 32, 3)
    # Away from the border, pixel x of 32 looks at x / 2 - 1/4 of 16.
    inside = np.arange(4, 28)
    np.testing.assert_allclose(enlarged[5, inside, 0], (inside / 2 - 0.25) * 10, atol=1)


def test_shift_is_one_of_all_whole_moves_over_black():
    image = np.random.default_rng(0).integers(1, 256, (8, 16, 3), np.uint8)
    padded = np.pad(image, ((1, 1), (2, 2), (0, 0)))
    # A window at (1 - y, 2 - x) of the padded image shows it moved by (y, x).
    possible = {
        padded[1 - y : 9 - y, 2 - x : 18 - x].tobytes() for y in range(-1, 2) for x in range(-2, 3)
    }
    rng = np.random.default_rng(1)
    seen = collections.Counter(random_shift(image, rng, 0.125).tobytes() for _ in range(1500))
    assert seen.keys() == possible
    assert min(seen.values()) > 60  # 100 expected of each of the 15.
    np.testing.assert_array_equal(random_shift(image, rng, 0.0), image)


def test_flip_mirrors_half_of_the_time():
    image = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    rng = np.random.default_rng(1)
    seen = collections.Counter(random_flip(image, rng).tobytes() for _ in range(1000))
    assert seen.keys() == {image.tobytes(), np.flip(image, axis=1).tobytes()}
    assert 430 < seen[image.tobytes()] < 570


def test_transforms_give_fixed_shapes_and_types():
    record = {"image": _RGB, "label": 7, "key": "k"}
    rng = np.random.default_rng(0)
    for element in (
        EvalTransform(5).map(record),
        TrainTransform(5, shift=0.5, flip=True).random_map(record, rng),
    ):
        assert element["image"].shape == (5, 5, 3)
        assert element["image"].dtype == np.uint8
        assert element["label"].dtype == np.int32
        assert element["label"] == 7
    # Without augmentation both are the same function.
    np.testing.assert_array_equal(
        TrainTransform(5).random_map(record, rng)["image"],
        cv2.resize(_RGB[:, :3], (5, 5), interpolation=cv2.INTER_CUBIC),
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EvalTransform(0), "size.*got 0"),
        (lambda: TrainTransform(-1), "size.*got -1"),
        (lambda: TrainTransform(8, shift=0.6), "shift.*got 0.6"),
        (lambda: TrainTransform(8, shift=-0.1), "shift.*got -0.1"),
    ],
)
def test_transforms_check_their_arguments(make, message):
    with pytest.raises(InputError, match=message):
        make()


# Loader

_AUGMENT = TrainTransform(8, shift=0.25, flip=True)


def test_each_epoch_is_another_permutation():
    batches = take(train_batches(Images(Numbered(21)), _AUGMENT, Share(6), seed=0), 7)
    labels = labels_of(batches)
    first, second = labels[:21], labels[21:42]
    assert sorted(first) == sorted(second) == list(range(21))
    assert first != second
    assert first != sorted(first)
    assert batches[0]["image"].shape == (6, 8, 8, 3)
    assert batches[0]["image"].dtype == np.uint8
    assert batches[0]["label"].dtype == np.int32


def test_the_seed_sets_the_order_and_the_augmentation():
    def run(seed):
        return take(train_batches(Images(Numbered(20)), _AUGMENT, Share(10), seed=seed), 4)

    assert_same_batches(run(1), run(1))
    assert labels_of(run(1)) != labels_of(run(2))

    def images_of_record_0(seed):
        batches = run(seed)
        images = np.concatenate([batch["image"] for batch in batches])
        return images[np.array(labels_of(batches)) == 0]

    # Two epochs, two draws of the augmentation.
    first, second = images_of_record_0(1)
    assert np.any(first != second)


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("repeats", [1, 3])
def test_resume_equals_the_uninterrupted_run(workers, repeats):
    arguments = (Images(Numbered(20)), _AUGMENT, Share(8))
    uninterrupted = take(train_batches(*arguments, seed=3, repeats=repeats), 9)
    resumed = train_batches(*arguments, seed=3, start_step=4, repeats=repeats, workers=workers)
    assert_same_batches(take(resumed, 5), uninterrupted[4:])
    assert not multiprocessing.active_children()


def test_shares_of_two_hosts_in_order_are_the_batch_of_one():
    images = Images(Numbered(20))
    whole = take(train_batches(images, _AUGMENT, Share(8), seed=3), 6)
    hosts = [take(train_batches(images, _AUGMENT, Share(8, i, 2), seed=3), 6) for i in range(2)]
    for batch, first, second in zip(whole, *hosts, strict=True):
        joined = {name: np.concatenate([first[name], second[name]]) for name in batch}
        assert_same_batches([joined], [batch])


@pytest.mark.parametrize("batch_size, count, piece", [(300, 1, 100), (300, 2, 75), (127, 1, 127)])
def test_batches_made_in_pieces_are_in_order(batch_size, count, piece):
    """Element n is element n of the endless order, whatever the pieces are."""
    images = Images(Numbered(40))
    elements = labels_of(take(train_batches(images, _AUGMENT, Share(20), seed=3), 60))
    for index in range(count):
        share = Share(batch_size, index, count)
        assert share.piece == piece
        for step, batch in enumerate(take(train_batches(images, _AUGMENT, share, seed=3), 3)):
            start = step * batch_size + index * share.size
            assert batch["label"].tolist() == elements[start : start + share.size]


@pytest.mark.parametrize("count", [1, 2])
def test_keys_are_those_of_the_batch(count):
    for index in range(count):
        share = Share(8, index, count)
        batches = take(train_batches(Images(Numbered(20)), _AUGMENT, share, seed=3, repeats=2), 4)
        keys = train_keys(Numbered(20), share, seed=3, step=3, repeats=2)
        assert keys == [f"numbered#{label}" for label in batches[3]["label"]]


def test_repeated_images_are_augmented_anew():
    batches = take(train_batches(Images(Numbered(8)), _AUGMENT, Share(24), seed=0, repeats=3), 1)
    labels, images = batches[0]["label"].reshape(8, 3), batches[0]["image"].reshape(8, 3, -1)
    assert (labels == labels[:, :1]).all() and sorted(labels[:, 0]) == list(range(8))
    assert (images != images[:, :1]).any(-1)[:, 1:].any(-1).sum() >= 7


def test_image_sizes_change_at_their_steps():
    """And nothing else does: the order is that of a run with one size, from any step on."""
    dataset = Dataset(Numbered(20), Numbered(4), tuple(map(str, range(20))))

    def batches(image_sizes, start, count):
        made = ImageBatches(
            dataset,
            image_sizes=image_sizes,
            eval_image_size=8,
            eval_crop="whole",
            batch_size=4,
            eval_batch_size=4,
            seed=1,
            unreadable_log=None,
            workers=0,
            max_unreadable=0,
            repeats=1,
            flip=True,
        )
        return take(made.train(start), count)

    growing, fixed = batches(((0, 6), (2, 8), (5, 12)), 0, 7), batches(((0, 8),), 0, 7)
    assert [b["image"].shape[1] for b in growing] == [6, 6, 8, 8, 8, 12, 12]
    assert labels_of(growing) == labels_of(fixed)
    assert_same_batches(growing[2:5], fixed[2:5])
    for start in (1, 2, 4, 6):
        again = batches(((0, 6), (2, 8), (5, 12)), start, 7 - start)
        assert_same_batches(again, growing[start:])


@pytest.mark.parametrize("batch_size", [2, 4, 10, 16, 260])
@pytest.mark.parametrize("process_count", [1, 2])
def test_evaluation_sees_every_record_once(batch_size, process_count):
    hosts = [
        list(
            eval_batches(
                Images(Numbered(10)), EvalTransform(8), Share(batch_size, index, process_count)
            )
        )
        for index in range(process_count)
    ]
    assert {len(batches) for batches in hosts} == {-(-10 // batch_size)}
    labels = []
    for batch in itertools.chain(*hosts):
        assert batch["image"].shape == (batch_size // process_count, 8, 8, 3)
        assert batch["valid"].dtype == bool
        assert not batch["image"][~batch["valid"]].any()
        assert not batch["label"][~batch["valid"]].any()
        for image, label in zip(
            batch["image"][batch["valid"]], batch["label"][batch["valid"]], strict=True
        ):
            assert image[0, 0, 0] == label  # The image of its own record.
        labels += batch["label"][batch["valid"]].tolist()
    assert sorted(labels) == list(range(10))
    if process_count == 1:
        assert labels == list(range(10))


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_image_raises_here_as_one_line(workers):
    images = Images(Numbered(10, broken=[7]))
    batches = eval_batches(images, EvalTransform(8), Share(2), workers=workers)
    with pytest.raises(InputError, match="numbered#7") as caught:
        list(batches)
    assert "\n" not in str(caught.value)
    assert not multiprocessing.active_children()


# Images that cannot be read


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images_are_replaced_by_the_next_and_listed(workers, tmp_path):
    log = tmp_path / "log.txt"
    images = Images(Numbered(20, broken=[4, 5, 19]), max_unreadable=3, log=log)
    plain = TrainTransform(8)
    with_broken = labels_of(
        take(train_batches(images, plain, Share(4), seed=0, workers=workers), 15)
    )
    whole = labels_of(take(train_batches(Images(Numbered(20)), plain, Share(4), seed=0), 15))
    instead = {4: 6, 5: 6, 19: 0}
    assert with_broken == [instead.get(label, label) for label in whole]
    assert sorted(log.read_text().split()) == ["numbered#19", "numbered#4", "numbered#5"]


def test_unreadable_images_do_not_count_in_evaluation(tmp_path):
    images = Images(Numbered(10, broken=[0, 7]), max_unreadable=2, log=tmp_path / "log.txt")
    images_of_zeros = list(eval_batches(images, EvalTransform(8), Share(4)))
    mask = np.concatenate([batch["valid"] for batch in images_of_zeros])
    np.testing.assert_array_equal(np.flatnonzero(mask), [1, 2, 3, 4, 5, 6, 8, 9])


def test_too_many_unreadable_images_are_an_error(tmp_path):
    log = tmp_path / "log.txt"
    images = Images(Numbered(20, broken=[2, 3, 4]), max_unreadable=2, log=log)
    with pytest.raises(InputError, match=r"3 images cannot be read, more than loader\.max_unread"):
        take(train_batches(images, TrainTransform(8), Share(4), seed=0), 10)
    with pytest.raises(InputError, match="3 images cannot be read"):  # nor by starting again
        Images(Numbered(20, broken=[4]), max_unreadable=2, log=log)[4]
    again = Images(Numbered(20, broken=[5]), max_unreadable=2, log=log)
    with pytest.raises(InputError, match=f"4 images cannot be read.*{log}.*numbered#5"):
        again[5]  # what was found before a restart counts


def test_vanished_directory_is_an_error_soon(tmp_path):
    write_images(tmp_path / "images" / "cat", 10)
    records = open_dataset(f"folder:{tmp_path}/images").train
    images = Images(records, max_unreadable=3, log=tmp_path / "log.txt")
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"\d+ images cannot be read.*No such file"):
        take(train_batches(images, TrainTransform(8), Share(4), seed=0), 1)


@pytest.mark.parametrize("kept", [0.3, 0.9, 0.99])
def test_jpeg_that_is_cut_off_is_unreadable(kept):
    photo = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    encoded = encode(photo, file_format="JPEG")
    assert decode({"image": encoded, "key": "k"}).shape == (64, 64, 3)
    assert decode({"image": encoded + b"\0" * 16, "key": "k"}).shape == (64, 64, 3)
    with pytest.raises(InputError, match="cannot decode the image k"):
        decode({"image": encoded[: int(kept * len(encoded))], "key": "k"})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": -1}, "seed.*got -1"),
        ({"seed": 2**32}, "seed"),
        ({"workers": -1}, "loader.workers"),
        ({"repeats": 0}, "augment.repeats must be at least 1; got 0"),
    ],
)
def test_loader_checks_its_arguments(arguments, message):
    with pytest.raises(InputError, match=message):
        train_batches(Images(Numbered(4)), _AUGMENT, Share(2), **{"seed": 0, **arguments})
    with pytest.raises(InputError, match=r"loader\.max_unreadable must not be negative"):
        Images(Numbered(4), max_unreadable=-1)
    with pytest.raises(InputError, match="batch_size 3 must be a multiple of the 2 processes"):
        Share(3, 0, 2)


_LOADING_SCRIPT = """
import time
from resnest_jax.data.images import Images
from resnest_jax.data.loader import Share, train_batches
from resnest_jax.data.sources.records import open_dataset
from resnest_jax.tasks.classification.transforms import TrainTransform

if __name__ == "__main__":
    images = Images(open_dataset("folder:FOLDER").train)
    batches = train_batches(images, TrainTransform(8), Share(2), seed=0, workers=1)
    next(batches)
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="finds processes through /proc")
def test_workers_end_with_a_killed_parent(tmp_path):
    write_images(tmp_path / "images" / "cat", 5)
    script = tmp_path / "script.py"
    script.write_text(_LOADING_SCRIPT.replace("FOLDER", str(tmp_path / "images")))
    parent = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
    with parent:
        assert parent.stdout.readline() == "ready\n"
        children = _children(parent.pid)
        assert children
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while any(_is_running(child) for child in children):
        assert time.monotonic() < deadline, f"still running: {children}"
        time.sleep(0.1)


def _children(pid):
    """Child processes of any thread of `pid`."""
    found = []
    for thread in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{thread}/children") as file:
            found += file.read().split()
    return found


def _is_running(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"  # Ended, not yet collected.
    except FileNotFoundError:
        return False
