"""Data sets by name, as records by index whose images are still encoded."""

import os

from resnest_jax.data.sources.coco import KIND, BoxDataset, open_coco
from resnest_jax.data.sources.folder import open_folder, open_folder_split
from resnest_jax.data.sources.masks import KINDS, MaskDataset, open_masks
from resnest_jax.data.sources.records import Dataset, Records, Relabelled, Split
from resnest_jax.data.sources.table import open_table, open_table_split
from resnest_jax.errors import InputError
from resnest_jax.files import local_path

__all__ = [
    "PATH_KINDS",
    "BoxDataset",
    "Dataset",
    "MaskDataset",
    "Records",
    "Relabelled",
    "Split",
    "open_coco",
    "open_dataset",
    "open_masks",
    "open_split",
]

_FOLDER_PREFIX = "folder:"
_TABLE_PREFIX = "csv:"
PATH_KINDS = (_FOLDER_PREFIX, _TABLE_PREFIX, *(f"{kind}:" for kind in (*KINDS, KIND)))  # KIND:PATH


def open_dataset(
    name: str,
    *,
    train_split: str = "auto",
    eval_split: str = "auto",
    multi_label: bool = False,
    data_dir: str | os.PathLike | None = None,
    manual_dir: str | os.PathLike | None = None,
) -> Dataset:
    """Open a data set of labelled images; TFDS prepares it first if it has not done so.

    Args:
      name: a TFDS name (``sklearn_digits``, ``imagenet2012:5.1.0``); or ``folder:PATH`` with images
        in ``PATH/train/CLASS/`` and ``PATH/{validation,val,test}/CLASS/``, or in ``PATH/CLASS/``;
        or ``csv:PATH`` with a CSV file, or a folder with ``train.csv`` and
        ``{validation,val,test}.csv``: UTF-8, with the header ``file,label``, paths relative to the
        file, and labels separated by ``;``.
      train_split: a TFDS split (``train[:90%]``) or the name of a subfolder or, without ``.csv``,
        of a CSV file; ``auto`` is ``train``.
      eval_split: the same; ``auto`` is the first that exists of ``validation``, ``val`` (not
        TFDS) and ``test``. If both are ``auto`` and there is only one split, a fifth of it is held
        out: the last records with TFDS, every fifth image of each class in ``PATH/CLASS/``, every
        fifth row of a CSV file.
      multi_label: images have any number of labels, in a CSV file.
      data_dir: directory of TFDS; None is TFDS's own default, which the environment variable
        ``TFDS_DATA_DIR`` sets. Folders and CSV files ignore it.
      manual_dir: directory of files that users must download themselves because of the terms of a
        data set; None is TFDS's own default, ``downloads/manual`` in its directory.

    Returns:
      A ``Dataset`` whose records pickle as paths and offsets, not as images.

    Raises:
      InputError: if a data set or split is unknown, does not have images and class labels, or
        cannot be prepared or read here, or if a folder or CSV file has another layout.
    """
    if name.startswith(_TABLE_PREFIX):
        path = local_path("dataset csv:PATH", name.removeprefix(_TABLE_PREFIX))
        return open_table(path, train_split, eval_split, multi_label)
    if multi_label:
        raise InputError(f"multi_label needs a dataset csv:PATH; got {name!r}")
    if name.startswith(_FOLDER_PREFIX):
        root = local_path("dataset folder:PATH", name.removeprefix(_FOLDER_PREFIX))
        return open_folder(root, train_split, eval_split)
    _check_directories(data_dir, manual_dir)
    # Slow to import, and folders do not need it.
    from resnest_jax.data.sources.tfds import open_tfds

    return open_tfds(name, train_split, eval_split, data_dir, manual_dir)


def open_split(name: str, split: str = "auto", multi_label: bool = False) -> Split:
    """Open one labelled split, for evaluation; the data set needs no other.

    Args:
      name, multi_label: as in ``open_dataset``.
      split: as ``eval_split`` there; ``auto`` is the first that exists of ``validation``, ``val``
        (not TFDS) and ``test``, or of a folder ``PATH/CLASS/``, a CSV file and a data set with one
        split all images.

    Raises:
      InputError: as ``open_dataset``.
    """
    if name.startswith(_TABLE_PREFIX):
        path = local_path("dataset csv:PATH", name.removeprefix(_TABLE_PREFIX))
        return open_table_split(path, split, multi_label)
    if name.startswith(_FOLDER_PREFIX):
        root = local_path("dataset folder:PATH", name.removeprefix(_FOLDER_PREFIX))
        return open_folder_split(root, split)
    _check_directories(None, None)
    from resnest_jax.data.sources.tfds import open_tfds_split

    return open_tfds_split(name, split)


def _check_directories(
    data_dir: str | os.PathLike | None, manual_dir: str | os.PathLike | None
) -> None:
    """Raise InputError for directories that TFDS could not use, before it makes others."""
    environment = "TFDS_DATA_DIR"
    given = {environment: os.environ.get(environment), "data_dir": data_dir}
    for field, directory in given.items():
        if directory is not None:
            local_path(field, directory)
    if manual_dir is None:
        return
    path = local_path("manual_dir", manual_dir)
    if not path.is_dir() or not any(path.iterdir()):
        raise InputError(
            f"manual_dir {path.absolute()} must be a directory that holds the files you fetched"
        )
