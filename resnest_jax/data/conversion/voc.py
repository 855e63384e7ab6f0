"""Read boxes from the XML files of Pascal VOC, LabelImg and others."""

import collections
import math
from pathlib import Path
from xml.etree import ElementTree

from resnest_jax.data.conversion.coco import NO_SPLITS, Found, Object, Photo, hold_out
from resnest_jax.data.decode import upright_size
from resnest_jax.data.sources.folder import subfolders, walk_images
from resnest_jax.data.sources.mask_pairs import list_names, some
from resnest_jax.errors import InputError, one_line

ANNOTATIONS, LISTS = "Annotations", "ImageSets/Main"
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def read_voc(root: Path) -> Found:
    """Read the XML files of a folder, one per image.

    The splits are the lists of ``ImageSets/Main``, or the subfolders that have XML files, or else
    every fifth image is for evaluation. An image has the name of its XML file and is in the same
    folder or in another below ``root``. Corners are whole pixels that count from 1, as in VOC; the
    objects marked as difficult are ignored. Files without an image are left out.

    Raises:
      InputError: if a file is not of that form, or an image has another size than its file says.
    """
    years = [*root.glob("VOC*/Annotations"), *root.glob("VOCdevkit/VOC*/Annotations")]
    if len(years) > 1:
        found = some(sorted(str(path.parent) for path in years))
        raise InputError(f"--input {root} has several data sets: {found}; give one of them")
    root = years[0].parent if years else root
    notes: list[str] = []
    images = collections.defaultdict(list)
    for path in map(Path, walk_images(root)):
        images[path.stem].append(path)
    photos: dict[Path, Photo] = {}
    without = []
    for path in sorted(root.rglob("*.xml")):
        if photo := _read(path, images):
            photos[path] = photo
        else:
            without.append(str(path))
    if without:
        notes.append(f"{len(without)} XML files without an image, left out: {some(without)}")
    splits = _splits(root, photos, notes)
    used = {o.name for photo in photos.values() for o in photo.objects}
    return Found(splits, sorted(used), notes)


def _splits(root: Path, photos: dict[Path, Photo], notes: list[str]) -> dict[str, list[Photo]]:
    by_name = {path.stem: photo for path, photo in photos.items()}
    splits = {}
    # The other lists, such as dog_train, are of one class.
    for name in (name for name in list_names(root / LISTS) if "_" not in name):
        listed = (root / LISTS / f"{name}.txt").read_text().split()
        splits[name] = [by_name[stem] for stem in listed if stem in by_name]
        if missing := len(listed) - len(splits[name]):
            notes.append(f"{root / LISTS / name}.txt: {missing} images have no XML file, left out")
    if not splits:
        for folder in subfolders(root):
            inside = [photo for path, photo in photos.items() if root / folder in path.parents]
            if inside and folder != ANNOTATIONS:
                splits[folder] = inside
    splits = {name: inside for name, inside in splits.items() if inside}
    if len(splits) > 1:
        return splits
    notes.append(NO_SPLITS.format(root))
    return hold_out([*photos.values()])


def _read(path: Path, images: dict[str, list[Path]]) -> Photo | None:
    """Read an XML file; None if there is no image."""
    try:
        tree = ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError) as error:
        raise InputError(f"cannot read {path}: {one_line(error)}") from error
    named = Path(tree.findtext("filename") or "").stem
    found = images.get(path.stem) or images.get(named)
    if not found:
        return None
    # Next to the file, or in a folder next to its own: JPEGImages and Annotations.
    image = min(found, key=lambda p: (p.parent != path.parent, p.parents[1] != path.parents[1]))
    try:
        size = upright_size(image)
    except Exception as error:  # Pillow raises many kinds for broken files
        raise InputError(f"cannot read the image {image}: {one_line(error)}") from error
    listed = tuple(tree.findtext(f"size/{side}", "0").strip() for side in ("width", "height"))
    if listed != tuple(map(str, size)) and not {"0", ""} & {*listed}:  # 0: not filled in
        raise InputError(f"{path} is of {'x'.join(listed)} pixels, {image} of {size[0]}x{size[1]}")
    return Photo(image, size, [_object(node, path) for node in tree.iter("object")])


def _object(node: ElementTree.Element, path: Path) -> Object:
    name = (node.findtext("name") or "").strip()
    try:
        corners = [float(node.findtext(f"bndbox/{corner}", "")) for corner in _CORNERS]
    except ValueError:
        corners = []
    if not name or not corners or not all(map(math.isfinite, corners)):
        raise InputError(f"{path} has an object without a name or four numbers in bndbox")
    x0, y0, x1, y1 = corners
    difficult = (node.findtext("difficult") or "0").strip() == "1"
    return Object(name, (x0 - 1, y0 - 1, x1 - x0 + 1, y1 - y0 + 1), difficult)
