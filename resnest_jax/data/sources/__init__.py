"""Data sets by name, as records by index whose images are still encoded."""

import os
from pathlib import Path

from resnest_jax.data.sources.folder import open_folder
from resnest_jax.data.sources.masks import MaskDataset, open_masks
from resnest_jax.data.sources.records import Dataset, Records

__all__ = ["Dataset", "MaskDataset", "Records", "open_dataset", "open_masks"]

_FOLDER_PREFIX = "folder:"


def open_dataset(
    name: str,
    *,
    train_split: str = "auto",
    eval_split: str = "auto",
    data_dir: str | os.PathLike | None = None,
    manual_dir: str | os.PathLike | None = None,
) -> Dataset:
    """Open a data set of labelled images; TFDS prepares it first if it has not done so.

    Args:
      name: a TFDS name (``sklearn_digits``, ``imagenet2012:5.1.0``), or ``folder:PATH`` with images
        in ``PATH/train/CLASS/`` and ``PATH/{validation,val,test}/CLASS/``, or in ``PATH/CLASS/``.
      train_split: a TFDS split (``train[:90%]``) or the name of a subfolder; ``auto`` is ``train``.
      eval_split: the same; ``auto`` is the first that exists of ``validation``, ``val`` (folders
        only) and ``test``. If both are ``auto`` and there is only one split, a fifth of it is held
        out: the last records with TFDS, every fifth image of each class in ``PATH/CLASS/``.
      data_dir: directory of TFDS; None is TFDS's own default, which the environment variable
        ``TFDS_DATA_DIR`` sets. Folders ignore it.
      manual_dir: directory of files that users must download themselves because of the terms of a
        data set; None is TFDS's own default, ``downloads/manual`` in its directory.

    Returns:
      A ``Dataset`` whose records pickle as paths and offsets, not as images.

    Raises:
      InputError: if a data set or split is unknown, does not have images and class labels, or
        cannot be prepared or read here, or if a folder has another layout.
    """
    if name.startswith(_FOLDER_PREFIX):
        root = Path(name.removeprefix(_FOLDER_PREFIX)).expanduser()
        return open_folder(root, train_split, eval_split)
    # Slow to import, and folders do not need it.
    from resnest_jax.data.sources.tfds import open_tfds

    return open_tfds(name, train_split, eval_split, data_dir, manual_dir)
