"""Images with label maps: published data sets and users' own, in their own layouts."""

import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from resnest_jax.data.label_tables import IGNORED, LabelTable, published_table
from resnest_jax.data.sources import pascal_context, scenes
from resnest_jax.data.sources.folder import subfolders
from resnest_jax.data.sources.mask_checks import THREADS, check_values, readable_pairs
from resnest_jax.data.sources.mask_classes import read_table
from resnest_jax.data.sources.mask_pairs import (
    MAT,
    Pairs,
    folder_pairs,
    list_names,
    listed_pairs,
    read_label_map,
)
from resnest_jax.data.sources.records import EVAL_SPLITS, Dataset, find_split
from resnest_jax.errors import InputError
from resnest_jax.files import local_path, read_file

OWN = "masks"
_AUTO = {"train_split": ("training", "train"), "eval_split": EVAL_SPLITS}


class MaskRecords:
    """Records of images and label maps, both still encoded.

    ``{"image": bytes, "labels": bytes, "key": path of the image, "labels_key": path of its label
    map}``
    """

    def __init__(self, pairs: Pairs):
        self._pairs = pairs

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, labels = self._pairs[index]
        read = {"image": read_file("image", image), "labels": read_file("label map", labels)}
        return {**read, "key": image, "labels_key": labels}

    def key(self, index: int) -> str:
        """Return the path of the image."""
        return self._pairs[index][0]

    @property
    def label_maps(self) -> list[str]:
        """Paths of the label maps."""
        return [path for _, path in self._pairs]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskDataset(Dataset):
    """Images with label maps, and the table of their labels."""

    table: LabelTable

    def count_classes(self) -> np.ndarray:
        """Return the number of training pixels of each class, int64 (classes,)."""

        def count(path: str) -> np.ndarray:
            labels = self.table.labels(read_label_map(path), path)
            return np.bincount(labels[labels != IGNORED], minlength=len(self.class_names))

        with ThreadPoolExecutor(THREADS) as pool:
            return np.sum(list(pool.map(count, cast(MaskRecords, self.train).label_maps)), 0)


class _Layout(NamedTuple):
    """Where the files of a data set are.

    Attributes:
      roots: folders below PATH in which the data set may be, the first that has ``marker``.
      marker: a folder by which it is known.
      splits: function from the root to the names of the splits.
      pairs: function from the root and a split to its pairs, and what was left out.
      words: the layout, for errors.
    """

    roots: tuple[str, ...]
    marker: str
    splits: Callable[[Path], list[str]]
    pairs: Callable[[Path, str], tuple[Pairs, tuple[str, ...]]]
    words: str


def open_masks(
    name: str,
    *,
    train_split: str = "auto",
    eval_split: str = "auto",
    max_unreadable: int = 0,
    training: bool = True,
) -> MaskDataset:
    """Open images with label maps, and check them: every pair, and the values of some label maps.

    Args:
      name: ``scenes``, the built-in data set, see ``scenes.folder``; or ``KIND:PATH``, where the
        kind is one of

        - ``ade20k``: ``PATH/{images,annotations}/{training,validation}``;
        - ``cityscapes``: ``PATH/{leftImg8bit,gtFine}/{train,val}/CITY``;
        - ``pascal_context``: ``PATH/JPEGImages`` and ``PATH/trainval_merged.json``, from which
          label maps are written to ``PATH/SegmentationClassContext`` the first time;
        - ``voc``: ``PATH/{JPEGImages,SegmentationClass}`` and the lists
          ``PATH/ImageSets/Segmentation/{train,val}.txt``;
        - ``voc_aug``: ``PATH/{img,cls}`` and lists ``PATH/train.txt``, ``PATH/val.txt``;
        - ``masks``, a user's own: ``PATH/{images,annotations}/{training,validation}`` (or ``train``
          and ``val``), and perhaps ``PATH/classes.txt``, see ``mask_classes.read_table``.

        PATH may also be the folder around it, as the archive unpacks.
      train_split, eval_split: name of a folder or list; ``auto`` is the first that exists of
        ``training`` and ``train``, and of ``validation``, ``val`` and ``test``.
      max_unreadable: largest number of unreadable files in a split; training skips them.
      training: False: leave the training split empty, unless the classes are seen from it.

    Raises:
      InputError: if the layout is another, a split is missing or empty, an image has no label map
        or the reverse, the sizes of a pair differ, a file is unreadable, or a value is not one of
        the classes. The last is also checked whenever a label map is decoded.
    """
    kind, _, path = name.partition(":")
    layout = _LAYOUTS.get(kind, _ADE20K)
    if name == scenes.NAME:
        root = scenes.folder()
    elif kind in _LAYOUTS and path:
        root = _find_root(local_path(f"dataset {kind}:PATH", path), layout)
    else:
        kinds = ", ".join(f"{kind}:PATH" for kind in _LAYOUTS)
        raise InputError(f"dataset {name!r}: expected {scenes.NAME} or one of {kinds}")
    notes: list[str] = []
    needed = training or kind == OWN
    train = _open_split(root, layout, "train_split", train_split, notes) if needed else []
    held_out = _open_split(root, layout, "eval_split", eval_split, notes)
    readable = [readable_pairs(pairs, max_unreadable, notes) for pairs in (train, held_out)]
    table = read_table(root, readable[0], notes) if kind == OWN else published_table(kind)
    for pairs in readable:
        check_values(pairs, table)
    if both := len(set(train) & set(held_out)):
        notes.append(
            f"{root}: {both} of the {len(held_out)} evaluation images are also in the training "
            "split: the scores will be too high"
        )
    return MaskDataset(
        MaskRecords(train), MaskRecords(held_out), table.names, tuple(notes), table=table
    )


def _find_root(path: Path, layout: _Layout) -> Path:
    for folder in (path, *(path / root for root in layout.roots)):
        if (folder / layout.marker).is_dir():
            return folder
    problem = f"no {layout.marker} in {path}" if path.is_dir() else f"no such folder: {path}"
    raise InputError(f"{problem}; expected {layout.words}")


def _open_split(root: Path, layout: _Layout, field: str, split: str, notes: list[str]) -> Pairs:
    """Return the pairs of a split, the named one or the first usual one; extend ``notes``."""
    available = layout.splits(root)
    found = find_split(available, _AUTO[field] if split == "auto" else (split,))
    if found is None:
        raise InputError(
            f"{field} {split!r}: {root} has the splits {available}; expected {layout.words}"
        )
    pairs, left_out = layout.pairs(root, found)
    if not pairs:
        raise InputError(f"{field} {found!r} of {root} is empty; expected {layout.words}")
    notes += left_out
    return pairs


def _image_folders(root: Path) -> list[str]:
    return subfolders(root / "images")


def _image_folder_pairs(root: Path, split: str) -> tuple[Pairs, tuple[str, ...]]:
    return folder_pairs(root / "images" / split, root / "annotations" / split)


def _cityscapes_pairs(root: Path, split: str) -> tuple[Pairs, tuple[str, ...]]:
    return folder_pairs(
        root / "leftImg8bit" / split,
        root / "gtFine" / split,
        endings=("_leftImg8bit", "_gtFine_labelIds"),
    )


def _voc_lists(root: Path) -> list[str]:
    return list_names(root / "ImageSets/Segmentation")


def _voc_pairs(root: Path, split: str) -> tuple[Pairs, tuple[str, ...]]:
    listed = root / f"ImageSets/Segmentation/{split}.txt"
    return listed_pairs(listed, root / "JPEGImages", root / "SegmentationClass"), ()


def _voc_aug_pairs(root: Path, split: str) -> tuple[Pairs, tuple[str, ...]]:
    listed = root / f"{split}.txt"
    return listed_pairs(listed, root / "img", root / "cls", labels_suffix=MAT), ()


_ADE20K = _Layout(
    roots=("ADEChallengeData2016",),
    marker="images",
    splits=_image_folders,
    pairs=_image_folder_pairs,
    words=(
        "PATH/images/SPLIT/NAME.jpg and PATH/annotations/SPLIT/NAME.png with the splits training "
        "(or train) and validation (or val)"
    ),
)
_LAYOUTS = {
    "ade20k": _ADE20K,
    "cityscapes": _Layout(
        roots=("cityscapes",),
        marker="leftImg8bit",
        splits=lambda root: subfolders(root / "leftImg8bit"),
        pairs=_cityscapes_pairs,
        words=(
            "PATH/leftImg8bit/SPLIT/CITY/NAME_leftImg8bit.png and "
            "PATH/gtFine/SPLIT/CITY/NAME_gtFine_labelIds.png"
        ),
    ),
    "pascal_context": _Layout(
        roots=("VOC2010", "VOCdevkit/VOC2010"),
        marker="JPEGImages",
        splits=pascal_context.splits,
        pairs=pascal_context.pairs,
        words="PATH/JPEGImages/NAME.jpg and PATH/trainval_merged.json",
    ),
    "voc": _Layout(
        roots=("VOC2012", "VOCdevkit/VOC2012"),
        marker="ImageSets/Segmentation",
        splits=_voc_lists,
        pairs=_voc_pairs,
        words=(
            "PATH/ImageSets/Segmentation/SPLIT.txt, PATH/JPEGImages/NAME.jpg and "
            "PATH/SegmentationClass/NAME.png"
        ),
    ),
    "voc_aug": _Layout(
        roots=("dataset", "VOCaug/dataset"),
        marker="cls",
        splits=list_names,
        pairs=_voc_aug_pairs,
        words="PATH/SPLIT.txt, PATH/img/NAME.jpg and PATH/cls/NAME.mat",
    ),
    OWN: _ADE20K._replace(roots=()),
}
KINDS = tuple(_LAYOUTS)
