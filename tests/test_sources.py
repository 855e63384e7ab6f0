"""Data sets against scikit-learn's arrays and files on disk."""

import collections
import io
import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from records import Numbered, write_images

from resnest_jax.data.decode import decode
from resnest_jax.data.sources import open_dataset
from resnest_jax.errors import InputError


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


def read(records, field):
    return [records[index][field] for index in range(len(records))]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("tfds")


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
    # Equal as multisets: no image is lost or in both splits.
    assert contents(dataset.train) + contents(dataset.eval) == expected

    held_out = np.bincount(read(dataset.eval, "label"), minlength=10)
    assert np.all(np.abs(held_out - np.bincount(digits.target) / 5) < 1)


def test_tfds_directory_comes_from_the_environment(tmp_path):
    code = "from resnest_jax.data.sources import open_dataset; open_dataset('sklearn_digits')"
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
    with pytest.raises(InputError, match=r"as tfrecord.*set TFDS_DATA_DIR to another"):
        open_dataset("train_only", data_dir=tmp_path)


def test_unlabelled_record_is_an_error(tmp_path, monkeypatch):
    def unlabelled(self):
        yield 0, {"image": io.BytesIO(Numbered(1)[0]["image"]), "label": -1}

    monkeypatch.setattr(TrainOnly, "_generate_examples", unlabelled)
    dataset = open_dataset("train_only", train_split="train", eval_split="train", data_dir=tmp_path)
    with pytest.raises(InputError, match="train_only/train#0 has no label"):
        dataset.train[0]


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
    # A class without evaluation images does not change the other labels.
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


def test_every_image_of_a_class_is_used_and_other_files_are_counted(tmp_path):
    """Other formats, capital letters, subfolders and links; not hidden files."""
    cat = tmp_path / "cat"
    write_images(cat, 3)
    write_images(cat / "b" / "deep", 2)
    write_images(cat / "a", 2, ".WebP")
    write_images(tmp_path / "elsewhere" / "of", 1, ".bmp")
    (cat / "link").symlink_to(tmp_path / "elsewhere" / "of")
    (cat / "loop").symlink_to(cat)
    (tmp_path / "elsewhere").rename(tmp_path / ".elsewhere")
    (cat / "link").unlink()
    (cat / "link").symlink_to(tmp_path / ".elsewhere" / "of")
    for name in ("notes.txt", "more.TXT", "LICENSE", ".hidden.png"):
        (cat / name).touch()
    (tmp_path / "loose.png").touch()
    dataset = open_dataset(f"folder:{tmp_path}")
    names = [
        os.path.relpath(records.key(i), cat)
        for records in (dataset.train, dataset.eval)
        for i in range(len(records))
    ]
    expected = ["00.png", "01.png", "02.png", "a/00.WebP", "a/01.WebP"]
    expected += ["b/deep/00.png", "b/deep/01.png", "link/00.bmp"]
    assert sorted(names) == expected
    assert dataset.notes == (
        f"{tmp_path}: 4 files left out: 2 .txt, 1 outside the class folders, 1 without suffix",
    )


def test_class_called_like_a_split(tmp_path):
    for name in ("train", "car", "test"):
        write_images(tmp_path / name, 5)
    dataset = open_dataset(f"folder:{tmp_path}")
    assert dataset.class_names == ("car", "test", "train")
    assert (len(dataset.train), len(dataset.eval)) == (12, 3)


def test_splits_in_any_case_and_folders_that_are_not_used(tmp_path):
    for split in ("Train", "VAL", "extras"):
        write_images(tmp_path / split / "cat", 2)
    dataset = open_dataset(f"folder:{tmp_path}")
    assert (len(dataset.train), len(dataset.eval)) == (2, 2)
    assert dataset.notes == (f"{tmp_path}: folders left out: extras",)


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
        (_folder_with_an_unknown_class, "missing from training: dog"),
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
