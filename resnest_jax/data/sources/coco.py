"""Images with boxes and masks, in COCO's form: the published data set and users' own."""

import collections
import dataclasses
import itertools
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from resnest_jax.data.decode import check_listed_size, upright_size
from resnest_jax.data.sources.coco_boxes import BoxRecords, GroundTruth, ground_truth, make_records
from resnest_jax.data.sources.coco_file import CocoFile, hold_out, read_coco
from resnest_jax.data.sources.coco_masks import has_masks
from resnest_jax.data.sources.mask_checks import SAMPLE, THREADS
from resnest_jax.data.sources.mask_pairs import some
from resnest_jax.data.sources.records import EVAL_SPLITS, Dataset, find_split
from resnest_jax.errors import InputError
from resnest_jax.files import local_path

KIND = "coco"
_AUTO = {
    "train_split": ("train", "training", "train2017"),
    "eval_split": (*EVAL_SPLITS[:2], "valid", "val2017", *EVAL_SPLITS[2:]),
}
_IN_FOLDERS = ("_annotations.coco.json", "annotations.json")  # of Roboflow, and of others
_LAYOUT = (
    "expected PATH/annotations/instances_SPLIT.json, PATH/annotations/SPLIT.json, PATH/SPLIT.json "
    "or PATH/SPLIT/_annotations.coco.json with splits such as train and val, and images in "
    "PATH/SPLIT or PATH/images"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BoxDataset(Dataset):
    """Images with boxes.

    Attributes:
      truth: the objects of the evaluation images as COCO's evaluation takes them.
    """

    train: BoxRecords
    eval: BoxRecords
    truth: GroundTruth


def open_coco(
    name: str,
    *,
    train_split: str = "auto",
    eval_split: str = "auto",
    max_unreadable: int = 0,
    training: bool = True,
    masks: bool = False,
) -> BoxDataset:
    """Open images with boxes, and check the annotation files, the images and some of their sizes.

    Classes are the categories of the training split in the order of their ids, which may have gaps.
    Training leaves out crowd regions, boxes without a part inside the image, and images without a
    box; evaluation leaves out nothing. ``notes`` has a line about each of these.

    Args:
      name: ``coco:PATH``. The annotation files are ``PATH/annotations/instances_SPLIT.json``,
        ``PATH/annotations/SPLIT.json``, ``PATH/SPLIT.json``, or ``_annotations.coco.json`` or
        ``annotations.json`` in ``PATH/SPLIT``. Their file names are relative to ``PATH/SPLIT``,
        ``PATH/images/SPLIT``, the folder of the file, ``PATH/images`` or ``PATH``.
      train_split, eval_split: name of a split; ``auto`` is the first that exists of ``train``,
        ``training`` and ``train2017``, and of ``validation``, ``val``, ``valid``, ``val2017`` and
        ``test``. If both are ``auto`` and there is only one annotation file, every fifth image is
        held out.
      max_unreadable: largest number of images of a split that may be missing.
      training: False: leave the training records empty. There may be no training split then; the
        classes are those of the evaluation split.
      masks: the training records and the truth have masks too, which are checked. Training leaves
        out objects whose polygons all have fewer than three points. Without ``training`` the truth
        has none if the file has none.

    Raises:
      InputError: if the layout is another, a file is not in COCO's form, images are missing or of
        another size, a mask is missing or broken, or there is nothing to train on or to evaluate.
        The size of each image is also checked when it is decoded.
    """
    kind, _, path = name.partition(":")
    if kind != KIND or not path:
        raise InputError(f"dataset {name!r}: expected {KIND}:PATH; {_LAYOUT}")
    root = local_path(f"dataset {KIND}:PATH", path)
    notes: list[str] = []
    splits, (train, held_out) = _read_splits(root, train_split, eval_split, training, notes)
    names = _class_names(train, held_out, notes)
    labels = {category: label for label, category in enumerate(names)}
    train_paths, train_records = {}, BoxRecords([], np.zeros((0, 2), np.int32), [])
    if training:
        train_paths = _find_images(root, splits[0], train, max_unreadable, notes)
        train_records = make_records(train, train_paths, labels, notes, training=True, masks=masks)
    paths = _find_images(root, splits[1], held_out, max_unreadable, notes)
    eval_records = make_records(held_out, paths, labels, notes, training=False)
    if masks and not training and not has_masks(held_out):
        notes.append(f"{held_out.path} has no segmentation: only the boxes are evaluated")
        masks = False
    truth = ground_truth(held_out, [*paths], tuple(names), notes, masks=masks)
    if both := len({*train_paths.values()} & {*paths.values()}):
        notes.append(
            f"{root}: {both} of the {len(eval_records)} evaluation images are also in the training "
            "split: the scores will be too high"
        )
    return BoxDataset(
        train=train_records,
        eval=eval_records,
        class_names=tuple(names.values()),
        notes=tuple(notes),
        truth=truth,
    )


def _read_splits(
    root: Path, train_split: str, eval_split: str, training: bool, notes: list[str]
) -> tuple[list[str], list[CocoFile]]:
    """Return the names and the annotations of the two splits, without training maybe the same."""
    available = _annotation_files(root)
    if train_split == eval_split == "auto" and len([*itertools.chain(*available.values())]) == 1:
        [(name, [path])] = available.items()
        notes.append(f"{path} is the only annotation file: every fifth image is for evaluation")
        return [name, name], [*hold_out(read_coco(path))]
    held_out = _find_name(root, available, "eval_split", eval_split)
    if not training and _find_split(available, "train_split", train_split) is None:
        return [held_out] * 2, [read_coco(available[held_out][0])] * 2
    names = [_find_name(root, available, "train_split", train_split), held_out]
    return names, [read_coco(available[name][0]) for name in names]


def _annotation_files(root: Path) -> dict[str, list[Path]]:
    """Return the annotation files by the name of their split."""
    if not root.is_dir():
        raise InputError(f"no such folder: {root}; {_LAYOUT}")
    available: dict[str, list[Path]] = collections.defaultdict(list)
    for path in sorted([*root.glob("annotations/*.json"), *root.glob("*.json")]):
        available[path.stem.removeprefix("instances_")].append(path)
    for path in sorted(path for name in _IN_FOLDERS for path in root.glob(f"*/{name}")):
        if path.parent.name != "annotations":  # those above
            available[path.parent.name].append(path)
    return available


def _find_name(root: Path, available: dict[str, list[Path]], field: str, split: str) -> str:
    """Return the name of a split, the named or the first usual one."""
    found = _find_split(available, field, split)
    if found is None:
        has = f"has annotation files of {sorted(available)}" if available else "has none"
        raise InputError(f"{field} {split!r}: {root} {has}; {_LAYOUT}")
    if len(available[found]) > 1:
        files = " and ".join(map(str, available[found]))
        raise InputError(f"{field} {found!r}: there are {files}; remove or rename one")
    return found


def _find_split(available: Mapping[str, list[Path]], field: str, split: str) -> str | None:
    return find_split([*available], _AUTO[field] if split == "auto" else (split,))


def _class_names(train: CocoFile, held_out: CocoFile, notes: list[str]) -> dict[int, str]:
    """Return the name of each class by the id of its category."""
    used = train.used() | held_out.used()
    names = {i: category["name"] for i, category in train.categories.items()}
    above = [(i, category.get("supercategory")) for i, category in train.categories.items()]
    # Roboflow writes the name of the data set as a first category, above the others.
    groups = [i for i in names if i not in used and any(j != i and s == names[i] for j, s in above)]
    if groups:
        shown = some([names[i] for i in groups])
        notes.append(f"{train.path}: no class, but groups of the others without boxes: {shown}")
    names = {i: name for i, name in names.items() if i not in groups}
    counts = collections.Counter(names.values())
    if repeated := [name for name, count in counts.items() if count > 1]:
        raise InputError(f"{train.path} has names of categories more than once: {some(repeated)}")
    for i, category in held_out.categories.items():
        if i in names and category["name"] != names[i]:
            raise InputError(
                f"category {i} is {names[i]!r} in {train.path} and {category['name']!r} in "
                f"{held_out.path}; write both files with the same ids"
            )
    if missing := [held_out.categories[i]["name"] for i in sorted(held_out.used() - {*names})]:
        raise InputError(
            f"{held_out.path} has boxes of categories that {train.path} does not have: "
            f"{some(missing)}"
        )
    return names


def _find_images(
    root: Path, split: str, file: CocoFile, max_unreadable: int, notes: list[str]
) -> dict[int, str]:
    """Return the paths of the images that are there, by image id; check the sizes of some."""
    if not file.images:
        raise InputError(f"{file.path} has no images")
    names = [image["file_name"].replace("\\", "/") for image in file.images]
    folder = _image_folder(root, split, file, names)
    ids = [image["id"] for image in file.images]
    paths = {i: f"{folder}/{name}" for i, name in zip(ids, names, strict=True)}
    with ThreadPoolExecutor(THREADS) as pool:
        there = dict(zip(paths, pool.map(os.path.isfile, paths.values()), strict=True))
    if missing := [paths[i] for i, found in there.items() if not found]:
        line = f"{file.path}: {len(missing)} of {len(paths)} images are missing: {some(missing)}"
        if len(missing) > max_unreadable:
            raise InputError(
                f"{line}; to leave them out, set loader.max_unreadable to {len(missing)} or more"
            )
        notes.append(f"{line}; left out")
    found = {i: path for i, path in paths.items() if there[i]}
    _check_sizes(file, found)
    return found


def _image_folder(root: Path, split: str, file: CocoFile, names: Sequence[str]) -> Path:
    """Return the folder that has most of some images."""
    folders = [root / split, root / "images" / split, file.path.parent, root / "images", root]
    some_names = names[:: max(1, len(names) // SAMPLE)]
    counts = [sum((folder / name).is_file() for name in some_names) for folder in folders]
    if not any(counts):
        where = ", ".join(dict.fromkeys(map(str, folders)))
        raise InputError(
            f"{file.path}: its images, such as {names[0]!r}, are in none of {where}; {_LAYOUT}"
        )
    return folders[counts.index(max(counts))]


def _check_sizes(file: CocoFile, paths: dict[int, str]) -> None:
    """Compare the sizes of images, evenly spaced over the split, with those in the file."""
    images = [image for image in file.images if image["id"] in paths]
    for image in images[:: max(1, len(images) // SAMPLE)]:
        path = paths[image["id"]]
        try:
            size = upright_size(path)
        except Exception:  # a broken file, which decoding notices; Pillow raises many kinds
            continue
        check_listed_size(path, size[::-1], (int(image["height"]), int(image["width"])))
