"""Data sets by name, as random-access records whose images are still encoded."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import tensorflow_datasets as tfds

from resnest_jax.data.builtin import (
    sklearn_digits,  # noqa: F401  (registers them with TFDS)
)
from resnest_jax.errors import InputError

_FOLDER_PREFIX = "folder:"
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
_FOLDER_LAYOUT = (
    "expected PATH/train/CLASS/*.jpg and PATH/val/CLASS/*.jpg, or PATH/CLASS/*.jpg (jpg, jpeg, png)"
)
# Without an evaluation split of its own, a folder gives every fifth image of each class.
_HOLD_OUT = 5


class Records(Protocol):
    """Random access to {"image": encoded bytes, "label": int, "key": str that finds the record}."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, bytes | int | str]: ...

    def key(self, index: int) -> str:
        """The key of a record, without reading it."""
        ...


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Training and evaluation records, and the class name of each label."""

    train: Records
    eval: Records
    class_names: tuple[str, ...]


def open_dataset(
    name: str,
    *,
    train_split: str = "auto",
    eval_split: str = "auto",
    data_dir: str | os.PathLike | None = None,
    manual_dir: str | os.PathLike | None = None,
) -> Dataset:
    """Opens the data set `name`, preparing it first where TFDS has not yet done so.

    Args:
      name: A TFDS name (`sklearn_digits`, `imagenet2012:5.1.0`), or `folder:PATH` with images in
        PATH/train/CLASS/ and PATH/{validation,val,test}/CLASS/, or in PATH/CLASS/ alone.
      train_split: A TFDS split (`train[:90%]`) or a subfolder's name; 'auto' is `train`.
      eval_split: Likewise; 'auto' is the first that exists of `validation`, `val` (folders only)
        and `test`. Where both are 'auto' and there is but one split, a fifth is held out of it:
        the last records with TFDS, every fifth image of each class in PATH/CLASS/.
      data_dir: TFDS's directory; None is TFDS's own default, which the environment variable
        TFDS_DATA_DIR sets. Folders ignore it.
      manual_dir: Where the files are that a data set's terms make users fetch themselves; None is
        TFDS's own default, `downloads/manual` in its directory.

    Returns:
      A Dataset whose records pickle as paths and offsets, never as images.

    Raises:
      InputError: An unknown data set or split, one without images and class labels, one that
        cannot be prepared or read here, or a folder of another layout.
    """
    if name.startswith(_FOLDER_PREFIX):
        root = Path(name.removeprefix(_FOLDER_PREFIX)).expanduser()
        return _open_folder(root, train_split, eval_split)
    return _open_tfds(name, train_split, eval_split, data_dir, manual_dir)


class TfdsRecords:
    """Records of one split of a prepared TFDS data set."""

    def __init__(self, source: Sequence, name: str):
        self._source = source
        self._name = name

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, bytes | int | str]:
        example = self._source[index]
        key = self.key(index)
        if example["label"] < 0:  # How TFDS marks a split without labels, as ImageNet's `test`.
            raise InputError(f"record {key} has no label: choose a labelled split")
        return {"image": example["image"], "label": int(example["label"]), "key": key}

    def key(self, index: int) -> str:
        """Split and position."""
        return f"{self._name}#{index}"


class FolderRecords:
    """Records of image files: one list of paths and one array of labels, whatever the size."""

    def __init__(self, paths: Sequence[str], labels: np.ndarray):
        self._paths = paths
        self._labels = labels

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> dict[str, bytes | int | str]:
        path = self._paths[index]
        try:
            image = Path(path).read_bytes()
        except OSError as error:
            raise InputError(f"cannot read the image {path}: {error.strerror}") from error
        return {"image": image, "label": int(self._labels[index]), "key": path}

    def key(self, index: int) -> str:
        """The path."""
        return self._paths[index]


def _open_tfds(name, train_split, eval_split, data_dir, manual_dir) -> Dataset:
    """Opens a TFDS data set; its features are checked before anything is downloaded."""
    builder = _tfds_builder(name, data_dir)
    features = dict(builder.info.features)
    image, label = (features.get(key) for key in ("image", "label"))
    if not isinstance(image, tfds.features.Image) or not isinstance(
        label, tfds.features.ClassLabel
    ):
        raise InputError(
            f"data set {name!r} is not for image classification: expected the features "
            f"'image' (Image) and 'label' (ClassLabel), found {sorted(features)}"
        )
    _prepare(builder, name, manual_dir)
    train_split, eval_split = _tfds_splits(name, train_split, eval_split, builder.info.splits)
    return Dataset(
        train=_tfds_records(builder, name, train_split),
        eval=_tfds_records(builder, name, eval_split),
        class_names=tuple(label.names),
    )


def _tfds_builder(name, data_dir):
    """Returns the TFDS builder of `name`, with TFDS's many errors turned into one line."""
    try:
        return tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
        raise InputError(
            f"unknown data set {name!r}: expected sklearn_digits, another name of "
            "https://www.tensorflow.org/datasets/catalog, or folder:PATH"
        ) from error
    except ImportError as error:
        raise InputError(_needs_package(name, error)) from error
    except (ValueError, AssertionError) as error:  # A malformed name, unknown config or version.
        raise InputError(f"cannot open the data set {name!r}: {_one_line(error)}") from error


def _prepare(builder, name, manual_dir) -> None:
    """Writes the data set to TFDS's directory unless it is there already."""
    try:
        # array_record is the format that is read without TensorFlow.
        builder.download_and_prepare(
            file_format="array_record",
            download_config=tfds.download.DownloadConfig(manual_dir=manual_dir),
        )
    except ImportError as error:
        raise InputError(_needs_package(name, error)) from error
    except (
        AssertionError,  # Files that the user has to fetch are missing.
        OSError,  # No network, no space, no permission.
        ValueError,
        tfds.download.DownloadError,
    ) as error:
        raise InputError(f"cannot prepare the data set {name!r}: {_one_line(error)}") from error


def _tfds_splits(name, train_split, eval_split, available) -> tuple[str, str]:
    """Replaces 'auto' by split names."""
    held_out = next((split for split in ("validation", "test") if split in available), None)
    if train_split == eval_split == "auto" and held_out is None:
        return "train[:80%]", "train[80%:]"
    if eval_split == "auto" and held_out is None:
        # A share of `train` chosen here could overlap with the training split that was given.
        raise InputError(
            f"data set {name!r} has no split 'validation' or 'test' for eval_split 'auto': "
            f"name one of {sorted(available)} or a slice of it"
        )
    return (
        "train" if train_split == "auto" else train_split,
        held_out if eval_split == "auto" else eval_split,
    )


def _tfds_records(builder, name, split) -> TfdsRecords:
    """Opens one split, images left encoded."""
    try:
        source = builder.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})
    except NotImplementedError as error:
        raise InputError(
            f"data set {name!r} lies in {builder.data_dir} as {builder.info.file_format.value}, "
            "which needs TensorFlow to read: let TFDS_DATA_DIR name another place to prepare it in"
        ) from error
    except ValueError as error:
        sizes = {key: info.num_examples for key, info in builder.info.splits.items()}
        raise InputError(
            f"split {split!r} of the data set {name!r} is unknown or empty: expected one of "
            f"{sizes} or a slice such as 'train[:90%]'"
        ) from error
    return TfdsRecords(source, f"{name}/{split}")


def _needs_package(name, error) -> str:
    return (
        f"data set {name!r} needs a package that is not installed ({_one_line(error)}); "
        "for TensorFlow: pip install 'resnest_jax[prepare]'"
    )


def _one_line(error) -> str:
    return " ".join(str(error).split())


def _open_folder(root, train_split, eval_split) -> Dataset:
    """Opens a folder of images, with a folder for each split or none."""
    if not root.is_dir():
        raise InputError(f"no such folder: {root}; {_FOLDER_LAYOUT}")
    if train_split == eval_split == "auto" and not (root / "train").is_dir():
        paths, labels, class_names = _list_images(root)
        held_out = _every_fifth_of_each_class(labels)
        if not held_out.any():
            raise InputError(
                f"no class folder of {root} has the {_HOLD_OUT} images it takes to hold one out "
                f"for evaluation; {_FOLDER_LAYOUT}"
            )
        return Dataset(
            train=FolderRecords([paths[i] for i in np.flatnonzero(~held_out)], labels[~held_out]),
            eval=FolderRecords([paths[i] for i in np.flatnonzero(held_out)], labels[held_out]),
            class_names=class_names,
        )
    train_paths, train_labels, class_names = _list_images(
        _split_folder(root, "train_split", train_split, ("train",))
    )
    eval_paths, eval_labels, _ = _list_images(
        _split_folder(root, "eval_split", eval_split, ("validation", "val", "test")), class_names
    )
    return Dataset(
        train=FolderRecords(train_paths, train_labels),
        eval=FolderRecords(eval_paths, eval_labels),
        class_names=class_names,
    )


def _split_folder(root, field, split, auto) -> Path:
    """Returns the subfolder of a split: the one named, or the first of `auto` that exists."""
    names = auto if split == "auto" else (split,)
    for name in names:
        if name and (root / name).is_dir():
            return root / name
    raise InputError(
        f"{field} {split!r}: no folder {' or '.join(map(repr, names))} in {root}, "
        f"which has {_subfolders(root)}; {_FOLDER_LAYOUT}"
    )


def _list_images(folder, class_names=None) -> tuple[list[str], np.ndarray, tuple[str, ...]]:
    """Lists the images of the class folders in `folder`, sorted, as paths and int32 labels.

    `class_names` are those of the training split; None takes them from this folder.
    """
    found = _subfolders(folder)
    if not found:
        raise InputError(f"no class folders in {folder}; {_FOLDER_LAYOUT}")
    class_names = tuple(found) if class_names is None else class_names
    unknown = sorted(set(found) - set(class_names))
    if unknown:
        raise InputError(f"{folder} has classes that training has not: {', '.join(unknown)}")
    paths, counts = [], []
    for name in found:
        with os.scandir(folder / name) as entries:
            images = sorted(
                entry.path
                for entry in entries
                if entry.name.lower().endswith(_IMAGE_SUFFIXES) and not entry.name.startswith(".")
            )
        if not images:
            raise InputError(f"no images in the class folder {folder / name}; {_FOLDER_LAYOUT}")
        paths += images
        counts.append(len(images))
    labels = np.repeat([class_names.index(name) for name in found], counts).astype(np.int32)
    return paths, labels, class_names


def _subfolders(folder) -> list[str]:
    """Returns the names of the visible subfolders, sorted."""
    with os.scandir(folder) as entries:
        return sorted(
            entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")
        )


def _every_fifth_of_each_class(labels) -> np.ndarray:
    """Marks the fifth, tenth, ... image of each class in sorted labels: no class is used up."""
    position_in_class = np.arange(len(labels)) - np.searchsorted(labels, labels)
    return position_in_class % _HOLD_OUT == _HOLD_OUT - 1
