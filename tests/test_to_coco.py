"""Boxes of VOC and YOLO in COCO's form, by the command."""

import json

import commands
import numpy as np
import pytest
from PIL import Image

from resnest_jax.data.conversion import coco, voc, yolo
from resnest_jax.data.sources.coco import open_coco
from resnest_jax.errors import InputError

WIDTH, HEIGHT = 60, 40


def write_image(path, size=(WIDTH, HEIGHT)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path)


def voc_object(name, xmin, ymin, xmax, ymax, more=""):
    corners = {"xmin": xmin, "ymin": ymin, "xmax": xmax, "ymax": ymax}
    box = "".join(f"<{key}>{value}</{key}>" for key, value in corners.items())
    # A part has a box of its own.
    part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
    return f"<object><name>{name}</name>{more}<bndbox>{box}</bndbox>{part}</object>"


def write_xml(path, *objects, size=(WIDTH, HEIGHT)):
    path.parent.mkdir(parents=True, exist_ok=True)
    sides = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
    path.write_text(f"<annotation>{sides}{''.join(objects)}</annotation>")


def write_voc(root):
    for i in range(4):
        write_image(root / f"JPEGImages/{i}.jpg")
        write_xml(root / f"Annotations/{i}.xml", voc_object("dog", 1, 1, 60, 40))
    write_xml(
        root / "Annotations/1.xml",
        voc_object("cat", 11, 6, 20, 15.5),
        voc_object("dog", 2, 3, 4, 5, "<difficult>1</difficult>"),
    )
    for name, stems in {"train": "0 1", "val": "3 9", "dog_train": "2"}.items():
        path = root / f"ImageSets/Main/{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(stems.split()))


def boxes_of(records, index):
    record = records[index]
    return [[int(c), *b] for c, b in zip(record["classes"], record["boxes"].tolist(), strict=True)]


def test_voc(tmp_path):
    root = tmp_path / "VOCdevkit/VOC2007"
    write_voc(root)
    result = commands.run("resnest_jax.to_coco", f"--input={tmp_path}")
    assert result.returncode == 0, result.stderr
    path = tmp_path / "annotations/instances_train.json"
    assert f"{path}: 2 images, 3 objects" in result.stdout
    assert "val.txt: 1 images have no XML file" in result.stdout
    assert "classes: cat, dog" in result.stdout
    dataset = open_coco(f"coco:{tmp_path}")
    assert dataset.class_names == ("cat", "dog")
    assert [len(dataset.train), len(dataset.eval)] == [2, 1]
    assert boxes_of(dataset.train, 0) == [[1, 0, 0, 60, 40]]
    assert boxes_of(dataset.train, 1) == [[0, 10, 5, 20, 15.5]]  # without the difficult one
    content = json.loads(path.read_text())
    assert [o["iscrowd"] for o in content["annotations"]] == [0, 0, 1]
    assert content["annotations"][1]["bbox"] == [10, 5, 10, 10.5]
    again = commands.run("resnest_jax.to_coco", f"--input={tmp_path}")
    commands.assert_one_line(again, "instances_train.json is there already; use --overwrite")
    elsewhere = tmp_path / "elsewhere"
    coco.write(voc.read_voc(tmp_path), elsewhere)
    assert boxes_of(open_coco(f"coco:{elsewhere}").eval, 0) == [[1, 0, 0, 60, 40]]


def test_voc_without_lists(tmp_path):
    """In a folder per split, as LabelImg and Roboflow write them, or in one folder."""
    for split in ("train", "valid"):
        for i in range(2):
            write_image(tmp_path / f"two/{split}/{i}.png")
            write_xml(tmp_path / f"two/{split}/{i}.xml", voc_object("dog", 1, 1, 9, 9))
    found = voc.read_voc(tmp_path / "two")
    assert {name: len(photos) for name, photos in found.splits.items()} == {"train": 2, "valid": 2}
    assert found.splits["valid"][0].path == tmp_path / "two/valid/0.png"
    for i in range(10):
        write_image(tmp_path / f"one/{i}.png")
        write_xml(tmp_path / f"one/{i}.xml", voc_object("dog", 1, 1, 9, 9), size=(0, 0))
    write_xml(tmp_path / "one/10.xml")
    found = voc.read_voc(tmp_path / "one")
    assert {name: len(photos) for name, photos in found.splits.items()} == {"train": 8, "val": 2}
    assert len({photo.path for photos in found.splits.values() for photo in photos}) == 10
    assert "1 XML files without an image, left out" in found.notes[0]
    assert "every fifth image" in found.notes[1]


def write_yolo(root, lines, folders=("images/train", "images/val"), names="classes.txt"):
    for i, folder in enumerate(folders):
        write_image(root / folder / f"{i}.png")
        path = root / folder.replace("images", "labels") / f"{i}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(lines)
        write_image(root / folder / "empty.png")
    (root / names).write_text(NAMES[names])


NAMES = {
    "classes.txt": "cat\ndog\n",
    "obj.names": "cat\ndog",
    "data.yaml": "train: images/train\nnames: [cat, dog]\n",
    "dataset.yaml": "names:\n  1: dog\n  0: cat\n",
}


@pytest.mark.parametrize("names", NAMES)
@pytest.mark.parametrize(
    "folders", [("images/train", "images/val"), ("train/images", "valid/images")]
)
def test_yolo(folders, names, tmp_path):
    write_yolo(tmp_path, "1 0.5 0.5 0.5 0.25\n\n0 0.25 0.5 0.1 0.2\n", folders, names)
    found = yolo.read_yolo(tmp_path)
    coco.write(found, tmp_path)
    dataset = open_coco(f"coco:{tmp_path}")
    assert dataset.class_names == ("cat", "dog")
    assert [len(dataset.train), len(dataset.eval)] == [1, 2]
    expected = [[1, 15, 15, 45, 25], [0, 12, 16, 18, 24]]
    np.testing.assert_allclose(boxes_of(dataset.eval, 0), expected, rtol=1e-6)


def test_yolo_in_one_folder(tmp_path):
    write_yolo(tmp_path, "0 0.5 0.5 0.5 0.5", ["images"])
    for i in range(1, 9):
        write_image(tmp_path / f"images/{i}.png")
    found = yolo.read_yolo(tmp_path)
    assert {name: len(photos) for name, photos in found.splits.items()} == {"train": 8, "val": 2}


def broken_xml(text, root):
    write_image(root / "0.png")
    (root / "0.xml").write_text(text)


SIZE = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height></size>"
BROKEN = {
    "cut off": ("<annotation>", "cannot read"),
    "no name": (f"<a>{SIZE}{voc_object('', 1, 1, 2, 2)}</a>", "object without a name or four"),
    "no number": (f"<a>{SIZE}{voc_object('x', 1, 1, 2, 'two')}</a>", "object without a name"),
    "no corner": (f"<a>{SIZE}<object><name>x</name></object></a>", "object without a name"),
    "nan": (f"<a>{SIZE}{voc_object('x', 1, 1, 2, 'nan')}</a>", "object without a name"),
    "size": ("<a><size><width>4</width><height>5</height></size></a>", "is of 4x5 pixels, .*60x40"),
    "empty": (f"<a>{SIZE}</a>", "no objects"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_wrong_xml_file_is_refused(case, tmp_path):
    text, message = BROKEN[case]
    broken_xml(text, tmp_path)
    with pytest.raises(InputError, match=message):
        coco.write(voc.read_voc(tmp_path), tmp_path)
    assert not (tmp_path / "annotations").exists()


@pytest.mark.parametrize(
    "line", ["2 .5 .5 .5 .5", "-1 .5 .5 .5 .5", "0 .5 .5 .5", "dog 1 1 1 1", "0 nan 1 1 1"]
)
def test_a_wrong_text_is_refused(line, tmp_path):
    write_yolo(tmp_path, line)
    with pytest.raises(InputError, match="is not CLASS X Y WIDTH HEIGHT with a class from 0 to 1"):
        yolo.read_yolo(tmp_path)


def test_other_folders_are_refused(tmp_path):
    commands.assert_one_line(
        commands.run("resnest_jax.to_coco", "--input=/nowhere"), "no such folder: /nowhere"
    )
    with pytest.raises(InputError, match="has no names of classes"):
        yolo.read_yolo(tmp_path)
    (tmp_path / "data.yaml").write_text("names: 3")
    with pytest.raises(InputError, match="has no list of names"):
        yolo.read_yolo(tmp_path)
    (tmp_path / "data.yaml").write_text("names: [cat]")
    with pytest.raises(InputError, match="has no images in images/SPLIT"):
        yolo.read_yolo(tmp_path)
    for year in (2007, 2012):
        (tmp_path / f"VOC{year}/Annotations").mkdir(parents=True)
    with pytest.raises(InputError, match=r"several data sets: .*VOC2007, .*VOC2012; give one"):
        voc.read_voc(tmp_path)
