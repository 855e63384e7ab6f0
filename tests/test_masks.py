"""Images with label maps, in the layouts of the published data sets and of users."""

import io
import json
import pickle
import shutil
import sys

import numpy as np
import pytest
import scipy.io
from PIL import Image
from pycocotools import mask as coco
from records import encode

from resnest_jax.data.batches import Batches, LoaderOptions
from resnest_jax.data.images import Images
from resnest_jax.data.label_maps import MaskDecoder
from resnest_jax.data.sources import mask_checks, open_masks
from resnest_jax.errors import InputError


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def picture(seed, height=6, width=8, **kwargs):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return encode(pixels, **kwargs)


def label_map(seed, values, height=6, width=8):
    return np.random.default_rng(seed).choice(np.array(values), (height, width)).astype(np.uint8)


def write_pair(root, split, name, labels, image_suffix=".png", labels_suffix=".png"):
    """Write a pair in the layout of ADE20K."""
    image = picture(1, *labels.shape)
    write(root / "images" / split / f"{name}{image_suffix}", image)
    write(root / "annotations" / split / f"{name}{labels_suffix}", encode(labels))


def write_folder(root, train="training", held_out="validation", values=(0, 1, 2)):
    """Write three pairs for training and two for evaluation; return their label maps."""
    maps = {}
    for split, count in ((train, 3), (held_out, 2)):
        for i in range(count):
            maps[split, i] = label_map(i, values)
            write_pair(root, split, f"{i:02d}", maps[split, i])
    return maps


def decoded(dataset, split="train"):
    """Return the decoded records of a split."""
    records = getattr(dataset, split)
    images = Images(records, decode=MaskDecoder(dataset.table))
    return [images[i] for i in range(len(images))]


def labels_of(dataset, split="train"):
    return [record["labels"].tolist() for record in decoded(dataset, split)]


def shifted(raw):
    """Labels of ADE20K's form: 0 is ignored."""
    return np.where(raw == 0, 255, raw.astype(int) - 1).tolist()


def write_ade20k(root):
    maps = write_folder(root / "ADEChallengeData2016", values=(0, 1, 75, 150))
    return [shifted(maps["training", i]) for i in range(3)], 150, 255


def write_cityscapes(root):
    expected = []
    values = np.full(34, 255)
    values[[7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33]] = range(19)
    for split in ("train", "val"):
        for city, name in (("aachen", "b_000"), ("aachen", "a_001"), ("bonn", "a_000")):
            raw = label_map(len(expected), range(34))
            write(root / f"leftImg8bit/{split}/{city}/{name}_leftImg8bit.png", picture(0))
            truth = root / f"gtFine/{split}/{city}/{name}_gtFine"
            write(truth.with_name(f"{name}_gtFine_labelIds.png"), encode(raw))
            write(truth.with_name(f"{name}_gtFine_color.png"), picture(0))
            write(truth.with_name(f"{name}_gtFine_instanceIds.png"), encode(raw.astype(np.uint16)))
            write(truth.with_name(f"{name}_gtFine_polygons.json"), b"{}")
            expected.append(values[raw].tolist())
    return [expected[1], expected[0], expected[2]], 19, 255


def write_voc(root):
    voc, expected = root / "VOCdevkit/VOC2012", []
    for i in range(5):
        raw = label_map(i, (0, 1, 20, 255))
        write(voc / f"JPEGImages/p{i}.jpg", picture(i, file_format="JPEG"))
        if i < 4:  # most images have no label map
            write(voc / f"SegmentationClass/p{i}.png", encode(raw, mode="P"))
        expected.append(raw.tolist())
    for split, names in (("train", b"p3\np0\n"), ("val", b"p1\n"), ("trainval", b"p3\np0\np1\n")):
        write(voc / f"ImageSets/Segmentation/{split}.txt", names)
    return [expected[3], expected[0]], 21, 0


def write_voc_aug(root):
    voc, expected = root / "VOCaug/dataset", []
    for i in range(3):
        raw = label_map(i, range(21))
        write(voc / f"img/p{i}.jpg", picture(i, file_format="JPEG"))
        buffer = io.BytesIO()
        scipy.io.savemat(buffer, {"GTcls": {"Segmentation": raw}})
        write(voc / f"cls/p{i}.mat", buffer.getvalue())
        expected.append(raw.tolist())
    write(voc / "train.txt", b"p2\np0\n")
    write(voc / "val.txt", b"p1\n")
    return [expected[2], expected[0]], 21, 0


def segment(image, category, mask):
    encoded = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    encoded["counts"] = encoded["counts"].decode()
    return {"image_id": image, "category_id": category, "segmentation": encoded}


def write_pascal_context(root, category=458):
    voc = root / "VOCdevkit/VOC2010"
    images, segments = [], []
    # 2 is the first class, 23 the sixth (bicycle), 458 the last; 0 is everything else.
    raw = np.array([[0, 2, 2, 23, 0, 0], [0, 2, 458, 458, 458, 0]])
    for i, phase in enumerate(("train", "val", "train")):
        name = f"2008_{i:06d}"
        write(voc / f"JPEGImages/{name}.jpg", picture(i, 2, 6, file_format="JPEG"))
        images.append(
            {"file_name": f"{name}.jpg", "image_id": 7 * i, "phase": phase, "height": 2, "width": 6}
        )
        segments.append(segment(7 * i, 2, raw > 0))  # later segments cover earlier ones
        segments += [segment(7 * i, c, raw == c) for c in (23, 0)]
        segments.append(segment(7 * i, category, raw == 458))
    content = {"images": images, "annos_segmentation": segments}
    write(voc / "trainval_merged.json", json.dumps(content).encode())
    labels = [[255, 0, 0, 5, 255, 255], [255, 0, 58, 58, 58, 255]]
    return [labels, labels], 59, 255


LAYOUTS = {
    "ade20k": write_ade20k,
    "cityscapes": write_cityscapes,
    "pascal_context": write_pascal_context,
    "voc": write_voc,
    "voc_aug": write_voc_aug,
}


@pytest.mark.parametrize("kind", LAYOUTS)
def test_published_layouts(tmp_path, kind):
    expected, classes, padding = LAYOUTS[kind](tmp_path)
    dataset = open_masks(f"{kind}:{tmp_path}")
    assert labels_of(dataset) == expected
    assert len(dataset.class_names) == classes
    assert dataset.table.padding == padding
    # The images are those of the label maps, and no image is in both splits.
    keys = [[r["key"], r["labels_key"]] for r in decoded(dataset) + decoded(dataset, "eval")]
    stems = [
        [path.split("/")[-1].split(".")[0].removesuffix("_leftImg8bit") for path in pair]
        for pair in keys
    ]
    assert all(labels.removesuffix("_gtFine_labelIds") == image for image, labels in stems)
    assert len({pair[0] for pair in keys}) == len(keys)
    assert not any("too high" in note for note in dataset.notes)


def test_innermost_folder_of_a_layout_is_found_too(tmp_path):
    write_ade20k(tmp_path)
    write_voc(tmp_path)
    for name in ("ade20k:{}/ADEChallengeData2016", "voc:{}/VOCdevkit/VOC2012", "voc:{}/VOCdevkit"):
        assert len(open_masks(name.format(tmp_path)).train) in (2, 3)


def test_label_maps_of_pascal_context_are_written_once(tmp_path):
    write_pascal_context(tmp_path)
    first = labels_of(open_masks(f"pascal_context:{tmp_path}"))
    (tmp_path / "VOCdevkit/VOC2010/trainval_merged.json").unlink()
    assert labels_of(open_masks(f"pascal_context:{tmp_path}")) == first


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"images": [], "annos_segmentation": []}'])
def test_annotations_that_are_not_those_of_pascal_context(tmp_path, content):
    write_pascal_context(tmp_path)
    write(tmp_path / "VOCdevkit/VOC2010/trainval_merged.json", content)
    with pytest.raises(InputError, match=r"merged\.json is not that of Pascal Context"):
        open_masks(f"pascal_context:{tmp_path}")


def test_category_outside_pascal_context(tmp_path):
    write_pascal_context(tmp_path, category=5)
    with pytest.raises(InputError, match="image 2008_000000 has the category 5; expected 0"):
        open_masks(f"pascal_context:{tmp_path}")


def test_evaluation_images_in_training_are_told(tmp_path):
    write_voc(tmp_path)
    dataset = open_masks(f"voc:{tmp_path}", train_split="trainval")
    assert len(dataset.train) == 3
    assert "1 of the 1 evaluation images are also in the training split" in dataset.notes[-1]


def test_evaluation_needs_no_training_split(tmp_path):
    write_ade20k(tmp_path)
    shutil.rmtree(tmp_path / "ADEChallengeData2016/images/training")
    with pytest.raises(InputError, match="train_split 'auto'"):
        open_masks(f"ade20k:{tmp_path}")
    dataset = open_masks(f"ade20k:{tmp_path}", training=False)
    assert (len(dataset.train), len(dataset.eval), len(dataset.class_names)) == (0, 2, 150)


@pytest.mark.parametrize(
    ("train", "held_out"), [("training", "validation"), ("train", "val"), ("Train", "VAL")]
)
def test_own_folder_with_class_names(tmp_path, train, held_out):
    maps = write_folder(tmp_path, train, held_out, values=(0, 1, 2, 3, 255))
    (tmp_path / "classes.txt").write_text("sky\nroad\ncar\n")
    dataset = open_masks(f"masks:{tmp_path}")
    assert dataset.class_names == ("sky", "road", "car")
    assert dataset.notes == ()
    found = labels_of(dataset), labels_of(dataset, "eval")
    raw = [[maps[split, i] for i in range(n)] for split, n in ((train, 3), (held_out, 2))]
    expected = [[np.where(m == 255, 255, shifted(m)).tolist() for m in part] for part in raw]
    assert list(found) == expected


def test_own_folder_with_numbered_classes(tmp_path):
    maps = write_folder(tmp_path, values=(0, 30, 255))
    (tmp_path / "classes.txt").write_text("0 background\n30: the dog\n")
    dataset = open_masks(f"masks:{tmp_path}")
    assert dataset.class_names == ("background", "the dog")
    raw = maps["training", 0].astype(int)
    assert labels_of(dataset)[0] == np.where(raw == 30, 1, raw).tolist()


def test_own_colours(tmp_path):
    """Those of classes.txt, or of the palette of label maps, unless it is grey; else VOC's."""
    write_folder(tmp_path)
    (tmp_path / "classes.txt").write_text("sky\nroad\n")

    def palette():
        return open_masks(f"masks:{tmp_path}").table.palette

    voc = ((128, 0, 0), (0, 128, 0))
    assert palette() == voc
    first = tmp_path / "annotations/training/00.png"
    for stored, expected in (
        ([0, 0, 0, 9, 8, 7, 6, 5, 4], ((9, 8, 7), (6, 5, 4))),
        ([0, 0, 0, 1, 1, 1, 2, 2, 2], voc),
        ([0, 0, 0, 9, 8, 7, 9, 8, 7], voc),
        ([0, 0, 0, 9, 8, 7], ((9, 8, 7), (0, 0, 0))),
    ):
        with Image.open(first) as image:
            labels = Image.fromarray(np.asarray(image), "L")
        labels.putpalette(stored)
        labels.save(first)
        assert palette() == expected
    (tmp_path / "classes.txt").write_text("1 sky, 70 130 180\n2 the road: 1,2,3\n")
    table = open_masks(f"masks:{tmp_path}").table
    assert (table.names, table.palette) == (("sky", "the road"), ((70, 130, 180), (1, 2, 3)))
    (tmp_path / "classes.txt").write_text("sky 1 2 3\nroad 66\n")
    assert open_masks(f"masks:{tmp_path}").class_names == ("sky 1 2 3", "road 66")


def test_names_that_are_numbers(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "classes.txt").write_text("7\n3\n")
    table = open_masks(f"masks:{tmp_path}").table
    assert (table.names, table.values, table.ignored) == (("7", "3"), (1, 2), (0, 255))


def test_own_folder_without_class_names_takes_the_values_of_training(tmp_path):
    write_folder(tmp_path, values=(0, 1, 4, 255))
    dataset = open_masks(f"masks:{tmp_path}")
    assert dataset.class_names == ("1", "2", "3", "4")
    assert "no classes.txt: 4 classes" in dataset.notes[0]
    assert dataset.notes[1].endswith("no training label map has the values 2, 3")


def test_other_formats_and_subfolders(tmp_path):
    raw = label_map(0, (0, 1, 2))
    write_pair(tmp_path, "training", "deep/a.b", raw, ".webp", ".bmp")
    write_pair(tmp_path, "training", "wide", raw)
    write(tmp_path / "annotations/training/wide.png", encode(raw.astype(np.uint16)))
    write(tmp_path / "images/training/notes.txt", b"text")
    write_pair(tmp_path, "validation", "palette", raw)
    write(tmp_path / "annotations/validation/palette.png", encode(raw, mode="P"))
    dataset = open_masks(f"masks:{tmp_path}")
    assert labels_of(dataset) == [shifted(raw)] * 2
    assert labels_of(dataset, "eval") == [shifted(raw)]
    assert "1 files left out: 1 .txt" in dataset.notes[0]


def test_turned_photo_has_the_size_that_it_is_decoded_to(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    raw = label_map(0, (1, 2), height=8, width=6)
    for split in ("training", "validation"):
        write_pair(tmp_path, split, "a", raw)
        (tmp_path / f"images/{split}/a.png").unlink()
        turned = picture(0, 6, 8, file_format="JPEG", exif=exif)
        write(tmp_path / f"images/{split}/a.jpg", turned)
    assert labels_of(open_masks(f"masks:{tmp_path}")) == [shifted(raw)]


def _without_labels(root):
    for i in range(5):
        write_pair(root, "training", f"more{i}", label_map(0, (1,)))
        (root / f"annotations/training/more{i}.png").unlink()
    (root / "images/training/00.png").unlink()


def _without_annotations(root):
    (root / "annotations/training").rename(root / "annotations/other")


def _without_pairs(root):
    for folder in ("images", "annotations"):
        for path in (root / folder / "validation").iterdir():
            path.unlink()


def _other_size(root):
    write(root / "annotations/training/01.png", encode(label_map(0, (1,), 6, 9)))


def _value_outside(root):
    write(root / "annotations/validation/01.png", encode(label_map(0, (7,))))


def _broken_header(root):
    write(root / "images/training/01.png", b"broken")


def _huge_header(root):
    path = root / "images/training/01.png"
    content = bytearray(path.read_bytes())
    content[16:24] = (40000).to_bytes(4, "big") * 2
    path.write_bytes(content)


def _cut_label_map(root):
    path = root / "annotations/training/01.png"
    path.write_bytes(path.read_bytes()[:-30])


def _colours(root):
    write(root / "annotations/training/01.png", picture(0))


def _same_name(root):
    write(root / "images/training/01.jpg", picture(0, file_format="JPEG"))


def _no_splits(root):
    (root / "images/training").rename(root / "images/mine")


def _empty_line(root):
    (root / "classes.txt").write_text("sky\n\nroad\n")


def _name_twice(root):
    (root / "classes.txt").write_text("sky\nsky\n")


def _value_twice(root):
    (root / "classes.txt").write_text("1 sky\n1 road\n")


def _large_value(root):
    (root / "classes.txt").write_text("1 sky\n70000 road\n")


def _large_colour(root):
    (root / "classes.txt").write_text("1 sky 0 0 0\n2 road 0 0 256\n")


def _no_text(root):
    (root / "classes.txt").write_bytes(b"\xff\xfe\x80")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            _without_labels,
            "5 without label map in .*: more0, more1, more2 and 2 more; 1 without im",
        ),
        (_without_annotations, "no such folder: .*annotations/training"),
        (_without_pairs, "eval_split 'validation' of .* is empty"),
        (_other_size, r"1 label maps of another size: .*01.png is 8x6.*01.png 9x6"),
        (_value_outside, "validation/01.png has the value 7 .*expected 1 to 2 .*or 0, 255 for ign"),
        (_broken_header, "1 unreadable files: .*images/training/01.png"),
        (_huge_header, "1 unreadable files: .*images/training/01.png"),
        (_cut_label_map, "cannot decode the label map .*training/01.png"),
        (_colours, "training/01.png: its pixels are RGB; expected one number"),
        (_same_name, "01.jpg and .*01.png have the same name"),
        (
            _no_splits,
            r"train_split 'auto': .* has the splits \['mine', 'validation'\]; expected PA",
        ),
        (_empty_line, "classes.txt has 3 lines, 1 of them empty"),
        (_name_twice, "names more than once: sky"),
        (_value_twice, "values more than once: 1"),
        (_large_value, "the value 70000; expected 0 to 65535"),
        (_large_colour, r"the colour \(0, 0, 256\); expected three numbers from 0 to 255"),
        (_no_text, "cannot read .*classes.txt"),
    ],
)
def test_own_folder_with_a_fault(tmp_path, change, message):
    write_folder(tmp_path)
    (tmp_path / "classes.txt").write_text("sky\nroad\n")
    change(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        open_masks(f"masks:{tmp_path}")
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("values", [(0, 255), (0, 300)])
def test_own_folder_without_classes(tmp_path, values):
    write_folder(tmp_path)
    for path in (tmp_path / "annotations").rglob("*.png"):
        path.write_bytes(encode(np.full((6, 8), values[1], np.uint16)))
    with pytest.raises(InputError, match=r"(no value but 0 and 255|largest value is 300).*classes"):
        open_masks(f"masks:{tmp_path}")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("masks", "expected scenes or one of ade20k:PATH, cityscapes:PATH"),
        ("folder:here", "dataset 'folder:here': expected scenes or one of ade20k:PATH"),
        ("ade20k:no/where", "no such folder: no/where; expected PATH/images/SPLIT"),
        ("cityscapes:{}", "no leftImg8bit in .*; expected PATH/leftImg8bit/SPLIT/CITY"),
    ],
)
def test_unknown_kind_and_other_layout(tmp_path, name, message):
    with pytest.raises(InputError, match=message):
        open_masks(name.format(tmp_path))


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        (b"", "train_split 'train' of .* is empty"),
        (b"p3\np4\np9\n", "2 without label map in .*: p4, p9; 1 without image in .*: p9"),
        (b"p3\np3\n", "train.txt has names more than once: p3"),
    ],
)
def test_list_with_a_fault(tmp_path, lists, message):
    write_voc(tmp_path)
    write(tmp_path / "VOCdevkit/VOC2012/ImageSets/Segmentation/train.txt", lists)
    with pytest.raises(InputError, match=message):
        open_masks(f"voc:{tmp_path}")


def test_size_of_a_matlab_file_is_checked(tmp_path):
    write_voc_aug(tmp_path)
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, {"GTcls": {"Segmentation": label_map(0, (1,), 6, 9)}})
    write(tmp_path / "VOCaug/dataset/cls/p2.mat", buffer.getvalue())
    with pytest.raises(InputError, match=r"p2\.jpg is 8x6 pixels, its label map .*p2\.mat 9x6"):
        open_masks(f"voc_aug:{tmp_path}")


@pytest.mark.parametrize(
    ("kind", "module", "extra"),
    [("voc_aug", "scipy.io", "train"), ("pascal_context", "pycocotools.mask", "detection")],
)
def test_missing_package_is_named(tmp_path, monkeypatch, kind, module, extra):
    LAYOUTS[kind](tmp_path)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=rf"needs {module}: pip install 'resnest_jax\[{extra}\]'"):
        open_masks(f"{kind}:{tmp_path}")


def test_value_is_checked_in_a_sample_at_start_and_whenever_one_is_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(mask_checks, "SAMPLE", 2)
    write_folder(tmp_path)
    (tmp_path / "classes.txt").write_text("sky\nroad\n")
    write(tmp_path / "annotations/training/01.png", encode(label_map(0, (3,))))
    dataset = open_masks(f"masks:{tmp_path}")  # the first and the last are right
    with pytest.raises(InputError, match=r"01.png has the value 3 in 48 of its 48 pixels"):
        decoded(dataset)
    write(tmp_path / "annotations/training/02.png", encode(label_map(0, (4,))))
    with pytest.raises(InputError, match=r"02.png has the value 4"):
        open_masks(f"masks:{tmp_path}")


def test_unreadable_files_that_are_allowed(tmp_path):
    write_folder(tmp_path)
    _broken_header(tmp_path)
    dataset = open_masks(f"masks:{tmp_path}", max_unreadable=1)
    assert "1 unreadable files" in dataset.notes[0]
    assert len(dataset.train) == 3


def test_records_pickle_as_paths(tmp_path):
    write_folder(tmp_path)
    dataset = open_masks(f"masks:{tmp_path}")
    records = dataset.train
    images = pickle.loads(pickle.dumps(Images(records, decode=MaskDecoder(dataset.table))))
    np.testing.assert_array_equal(images[1]["labels"], decoded(dataset)[1]["labels"])
    pickled = pickle.dumps(records)
    assert str(tmp_path).encode() in pickled
    assert b"PNG" not in pickled
    assert pickle.loads(pickled)[1] == records[1]
    assert records[1]["key"] == records.key(1)
    (tmp_path / "annotations/training/01.png").unlink()
    with pytest.raises(InputError, match=r"cannot read the label map .*01\.png"):
        records[1]


class Whole:
    """A transform that changes nothing."""

    def map(self, element):
        return {"image": element["image"], "labels": element["labels"]}


def test_batches_of_label_maps(tmp_path):
    maps = write_folder(tmp_path)
    dataset = open_masks(f"masks:{tmp_path}")
    options = LoaderOptions(batch_size=2, eval_batch_size=4)
    batches = Batches(dataset, [], Whole(), options, decode=MaskDecoder(dataset.table))
    (batch,) = batches.eval()
    assert batch["valid"].tolist() == [True, True, False, False]
    expected = [shifted(maps["validation", i]) for i in range(2)]
    assert batch["labels"][:2].tolist() == expected
