"""Data sets of TensorFlow Datasets, read without TensorFlow."""

import contextlib
import logging
import os
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download import downloader

# Imported to register them with TFDS.
from resnest_jax.data.builtin import cluttered_digits, sklearn_digits  # noqa: F401
from resnest_jax.data.sources.records import Dataset, Split
from resnest_jax.errors import InputError, one_line

RETRIES = 2  # of a download; TFDS's own 10 take minutes to notice that there is no network


class TfdsRecords:
    """Records of one split of a prepared data set."""

    def __init__(self, source: Sequence[dict[str, Any]], name: str):
        self._source = source
        self._name = name

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self._source[index]
        key = self.key(index)
        if example["label"] < 0:  # TFDS's mark of a split without labels, as ImageNet's test
            raise InputError(f"record {key} has no label: choose a labelled split")
        return {"image": example["image"], "label": int(example["label"]), "key": key}

    def key(self, index: int) -> str:
        """Return split and position."""
        return f"{self._name}#{index}"

    def labels(self) -> np.ndarray:
        """Read every record and return all labels."""
        return np.array([self[index]["label"] for index in range(len(self))])


def open_tfds(
    name: str,
    train_split: str,
    eval_split: str,
    data_dir: str | os.PathLike | None,
    manual_dir: str | os.PathLike | None,
) -> Dataset:
    """Open a data set by name; check its features before the download.

    Arguments and errors are those of ``sources.open_dataset``.
    """
    builder, class_names = _open_builder(name, data_dir, manual_dir)
    train_split, eval_split = _choose_splits(name, train_split, eval_split, builder.info.splits)
    return Dataset(
        train=_open_split(builder, name, "train_split", train_split),
        eval=_open_split(builder, name, "eval_split", eval_split),
        class_names=class_names,
    )


def open_tfds_split(name: str, split: str) -> Split:
    """Open one split of a data set by name.

    Arguments and errors are those of ``sources.open_split``.
    """
    builder, class_names = _open_builder(name)
    if split == "auto":
        names = ("validation", "test", *builder.info.splits)
        split = next(name for name in names if name in builder.info.splits)
    return Split(_open_split(builder, name, "eval_split", split), class_names)


def _open_builder(
    name: str,
    data_dir: str | os.PathLike | None = None,
    manual_dir: str | os.PathLike | None = None,
) -> tuple[tfds.core.DatasetBuilder, tuple[str, ...]]:
    """Return the builder of a prepared data set of labelled images, and its class names."""
    builder = _builder(name, data_dir)
    features = builder.info.features
    features = dict(features) if isinstance(features, tfds.features.FeaturesDict) else {}
    image, label = (features.get(key) for key in ("image", "label"))
    if not isinstance(image, tfds.features.Image) or not isinstance(
        label, tfds.features.ClassLabel
    ):
        raise InputError(
            f"data set {name!r} is not for image classification: expected the features "
            f"'image' (Image) and 'label' (ClassLabel), found {sorted(features)}"
        )
    _prepare(builder, name, manual_dir)
    return builder, tuple(label.names)


def _builder(name: str, data_dir: str | os.PathLike | None) -> tfds.core.DatasetBuilder:
    """Return the builder of a data set; turn the errors of TFDS into one line."""
    try:
        return tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
        raise InputError(
            f"unknown data set {name!r}: expected sklearn_digits, another name of "
            "https://www.tensorflow.org/datasets/catalog, folder:PATH or csv:PATH"
        ) from error
    except ImportError as error:
        raise InputError(_needs_package(name, error)) from error
    except (ValueError, AssertionError) as error:  # a malformed name, unknown config or version
        raise InputError(f"cannot open the data set {name!r}: {one_line(error)}") from error


def _prepare(
    builder: tfds.core.DatasetBuilder, name: str, manual_dir: str | os.PathLike | None
) -> None:
    """Write the data set to the directory of TFDS, if it is not there."""
    try:
        with _few_retries():
            # array_record is the format that is read without TensorFlow.
            builder.download_and_prepare(
                file_format="array_record",
                download_config=tfds.download.DownloadConfig(manual_dir=manual_dir),
            )
    except ImportError as error:
        raise InputError(_needs_package(name, error)) from error
    except (
        AssertionError,  # files that the user has to fetch are missing
        OSError,  # no network, no space, no permission
        ValueError,
        tfds.download.DownloadError,
    ) as error:
        raise InputError(
            f"cannot prepare the data set {name!r} in {builder.data_dir}: {one_line(error)}; "
            f"python -m resnest_jax.prepare --dataset={name} does this once, where there is a "
            "network, with --manual_dir=DIR for files that you must fetch yourself; or use a "
            "folder of images: folder:PATH"
        ) from error


@contextlib.contextmanager
def _few_retries() -> Iterator[None]:
    """Let TFDS notice in seconds that there is no network, and say so once."""
    logger = logging.getLogger("urllib3")
    before = downloader.MAX_RETRIES, logger.level
    downloader.MAX_RETRIES = RETRIES
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        downloader.MAX_RETRIES, level = before
        logger.setLevel(level)


def _choose_splits(
    name: str, train_split: str, eval_split: str, available: Collection[str]
) -> tuple[str, str]:
    """Replace ``auto`` by names of splits."""
    held_out = next((split for split in ("validation", "test") if split in available), None)
    if eval_split == "auto" and held_out is None:
        if train_split == "auto":
            return "train[:80%]", "train[80%:]"
        # A part of ``train`` chosen here could overlap with the given training split.
        raise InputError(
            f"data set {name!r} has no split 'validation' or 'test' for eval_split 'auto': "
            f"name one of {sorted(available)} or a slice of it"
        )
    if train_split == "auto":
        train_split = "train"
    if eval_split == "auto" and held_out is not None:
        eval_split = held_out
    return train_split, eval_split


def _open_split(
    builder: tfds.core.DatasetBuilder, name: str, field: str, split: str
) -> TfdsRecords:
    """Open one split, with encoded images."""
    try:
        source = builder.as_data_source(
            split=split,  # pyright: ignore[reportCallIssue]  # a decorator hides the parameters
            decoders={"image": tfds.decode.SkipDecoding()},
        )
    except NotImplementedError as error:
        form = builder.info.file_format
        stored = form.value if form else "another format"
        raise InputError(
            f"data set {name!r} is stored in {builder.data_dir} as {stored}, "
            "which only TensorFlow can read: set TFDS_DATA_DIR to another directory, to prepare it "
            "there"
        ) from error
    except ValueError as error:
        sizes = {key: info.num_examples for key, info in builder.info.splits.items()}
        raise InputError(
            f"{field}: split {split!r} of the data set {name!r} is unknown or empty: expected one "
            f"of {sizes} or a slice such as 'train[:90%]'"
        ) from error
    return TfdsRecords(source, f"{name}/{split}")


def _needs_package(name: str, error: ImportError) -> str:
    return (
        f"data set {name!r} needs a package that is not installed ({one_line(error)}); "
        "for TensorFlow: pip install 'resnest_jax[prepare]'; or use a folder of images: folder:PATH"
    )
