"""Images with boxes in COCO's form: layouts, what is left out and what is refused."""

import json
import pickle

import detection_data as data
import numpy as np
import pytest
from records import encode

from resnest_jax.data.decode import decode_sized
from resnest_jax.data.sources.coco import open_coco
from resnest_jax.errors import InputError


def rows(records, index):
    """Return the class and the box (left, top, width, height) of each object of a record."""
    record = records[index]
    boxes = record["boxes"]
    sizes = boxes[:, 2:] - boxes[:, :2]
    return [
        (int(label), *box.tolist(), *size.tolist())
        for label, box, size in zip(record["classes"], boxes[:, :2], sizes, strict=True)
    ]


LAYOUTS = {
    "coco": ("annotations/instances_{}.json", "{}", ("train2017", "val2017")),
    "plain": ("annotations/{}.json", "images/{}", ("train", "val")),
    "at the top": ("{}.json", "images", ("Train", "validation")),
    "roboflow": ("{}/_annotations.coco.json", "{}", ("train", "valid")),
    "in folders": ("{}/annotations.json", "{}", ("train", "test")),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, tmp_path):
    name, folder, splits = LAYOUTS[layout]
    for first, split in zip((0, 100), splits, strict=True):
        data.write_split(tmp_path, "elsewhere", data.content(first, 3), name)
        target = tmp_path / folder.format(split)
        target.mkdir(parents=True, exist_ok=True)
        for path in (tmp_path / "elsewhere").glob("*.png"):
            path.rename(target / path.name)
        (tmp_path / name.format("elsewhere")).rename(tmp_path / name.format(split))
    (tmp_path / "annotations").mkdir(exist_ok=True)
    (tmp_path / "annotations/captions_val2017.json").write_text("{}")
    dataset = open_coco(f"coco:{tmp_path}")
    assert [len(dataset.train), len(dataset.eval)] == [3, 3]
    assert dataset.notes == ()
    named = open_coco(f"coco:{tmp_path}", train_split=splits[1], eval_split=splits[0])
    assert named.train.key(0) == dataset.eval.key(0)
    assert "3 of the 3" in open_coco(f"coco:{tmp_path}", train_split=splits[1]).notes[0]


def test_one_annotation_file(tmp_path):
    file = data.content(0, 11)
    data.write_split(tmp_path, "default", file, "annotations/annotations.json")
    (tmp_path / "default").rename(tmp_path / "images")
    dataset = open_coco(f"coco:{tmp_path}")
    names = [records.key(i)[-6:-4] for records in (dataset.train, dataset.eval) for i in (0, 1)]
    assert names == ["00", "01", "04", "09"]
    assert [len(dataset.train), len(dataset.eval)] == [9, 2]
    assert dataset.train.counts.sum() + dataset.eval.counts.sum() == len(file["annotations"])
    assert dataset.truth.image_ids == (4, 9)
    assert "is the only annotation file: every fifth image is for evaluation" in dataset.notes[0]
    both = open_coco(f"coco:{tmp_path}", train_split="annotations", eval_split="annotations")
    assert "11 of the 11 evaluation images are also in the training" in both.notes[0]
    data.write_split(tmp_path, "images", data.content(0, 4), "annotations/annotations.json")
    with pytest.raises(InputError, match="has 4 images; it takes 5 to hold one out"):
        open_coco(f"coco:{tmp_path}")


def test_evaluation_needs_no_training_split(tmp_path):
    """If there is one, its categories are the classes, but none of its images is looked for."""
    _, held_out = data.write_coco(tmp_path)
    held_out["categories"] = held_out["categories"][::-1]
    data.write_split(tmp_path, "val", held_out)
    whole = open_coco(f"coco:{tmp_path}")
    (tmp_path / "train").rename(tmp_path / "elsewhere")
    alone = open_coco(f"coco:{tmp_path}", training=False)
    (tmp_path / "annotations/instances_train.json").unlink()
    without = open_coco(f"coco:{tmp_path}", eval_split="val", training=False)
    for dataset in (alone, without):
        assert (len(dataset.train), len(dataset.eval)) == (0, 5)
        assert dataset.class_names == whole.class_names == tuple(data.CLASSES.values())
        assert dataset.truth == whole.truth
    with pytest.raises(InputError, match=r"train_split 'auto': .* has annotation files of"):
        open_coco(f"coco:{tmp_path}", eval_split="val")
    with pytest.raises(InputError, match=r"eval_split 'test': .* has annotation files of"):
        open_coco(f"coco:{tmp_path}", eval_split="test", training=False)


def test_records(tmp_path):
    file, _ = data.write_coco(tmp_path)
    dataset = open_coco(f"coco:{tmp_path}")
    records = pickle.loads(pickle.dumps(dataset.train))
    labels = {category: label for label, category in enumerate(data.CLASSES)}
    assert dataset.class_names == tuple(data.CLASSES.values())
    assert len(records) == 10
    assert records.counts.sum() == len(file["annotations"])
    for i, image in enumerate(file["images"]):
        own = [o for o in file["annotations"] if o["image_id"] == image["id"]]
        assert rows(records, i) == [(labels[o["category_id"]], *o["bbox"]) for o in own]
        record = decode_sized(records[i])
        assert record["index"] == i
        assert record["key"] == records.key(i) == str(tmp_path / "train" / image["file_name"])
        assert tuple(records.sizes[i]) == record["size"] == (image["height"], image["width"])
        expected = data.picture(image["id"], image["height"], image["width"])
        np.testing.assert_array_equal(record["image"], expected)


def test_what_is_left_out(tmp_path):
    """Training: crowds, empty boxes, images without a box. Evaluation: nothing."""
    file, held_out = data.content(0, 4), data.content(100, 3)
    width, height = (file["images"][0][side] for side in ("width", "height"))
    file["annotations"] = [
        data.entry(0, 7, (-5, -5, 20, 15)),
        data.entry(0, 90, (width - 10, height - 8, 30, 30)),
        data.entry(0, 3, (5, 5, 0, 10)),
        data.entry(0, 3, (width, 0, 10, 10)),
        data.entry(1, 3, (0, 0, 10, 10), iscrowd=1),
        data.entry(3, 3, (1.5, 2, 3, 4), segmentation={"size": [48, 48], "counts": "x"}),
        data.entry(55, 3, (0, 0, 10, 10)),
    ]
    for split, content in (("train", file), ("val", held_out)):
        data.write_split(tmp_path, split, content)
    dataset = open_coco(f"coco:{tmp_path}")
    assert rows(dataset.train, 0) == [(1, 0, 0, 15, 10), (2, width - 10, height - 8, 10, 8)]
    assert rows(dataset.train, 1) == [(0, 1.5, 2, 3, 4)]
    assert len(dataset.train) == 2
    expected = [
        "1 annotations of images that it does not list, left out",
        "2 boxes of no size or outside their image, left out",
        "2 boxes reach over the border of their image and are cut there",
        "1 crowd regions, left out",
        "2 images without a box, left out",
    ]
    path = tmp_path / "annotations/instances_train.json"
    assert list(dataset.notes) == [f"{path}: {line}" for line in expected]
    reversed_splits = open_coco(f"coco:{tmp_path}", train_split="val", eval_split="train")
    assert len(reversed_splits.eval) == 4
    truth = reversed_splits.truth
    assert truth.image_ids == (0, 1, 2, 3)
    assert truth.category_ids == (3, 7, 90)
    assert [o["bbox"] for o in truth.content["annotations"]] == [
        o["bbox"] for o in file["annotations"][:-1]
    ]
    assert [o["id"] for o in truth.content["annotations"]] == [1, 2, 3, 4, 5, 6]
    assert "2 boxes of no size or outside their image, which count as not found" in "\n".join(
        reversed_splits.notes
    )


def test_missing_images_count_as_unreadable(tmp_path):
    data.write_coco(tmp_path)
    for name in ("train/03.png", "train/07.png", "val/101.png"):
        (tmp_path / name).unlink()
    with pytest.raises(InputError, match=r"2 of 10 images are missing: .*03\.png.*07\.png; .*to 2"):
        open_coco(f"coco:{tmp_path}", max_unreadable=1)
    dataset = open_coco(f"coco:{tmp_path}", max_unreadable=2)
    assert [len(dataset.train), len(dataset.eval)] == [8, 4]
    assert dataset.truth.image_ids == (100, 102, 103, 104)
    assert {o["image_id"] for o in dataset.truth.content["annotations"]} == {100, 102, 103, 104}
    assert [line.split(": ")[1] for line in dataset.notes] == [
        "2 of 10 images are missing",
        "1 of 5 images are missing",
    ]


def test_boxes_of_another_form(tmp_path):
    """Corners in place of sizes are asked about; fractions of the image are refused."""
    corners, fractions = data.content(0, 8), data.content(0, 8)
    for o in corners["annotations"]:
        o["bbox"][2:] = 64, 64
    for o in fractions["annotations"]:
        o["bbox"] = [side / 64 for side in o["bbox"]]
    data.write_split(tmp_path, "val", data.content(100, 2))
    data.write_split(tmp_path, "train", corners)
    [line] = open_coco(f"coco:{tmp_path}").notes
    assert line.endswith("cut there, most of all: are they (left, top, width, height)?")
    data.write_split(tmp_path, "train", fractions)
    with pytest.raises(InputError, match="its boxes are fractions of the images; expected pixels"):
        open_coco(f"coco:{tmp_path}")


def test_the_name_of_the_data_set_is_no_class(tmp_path):
    """Roboflow writes it as the first category, perhaps with the name of a real one."""
    for split, first in (("train", 0), ("val", 100)):
        file = data.content(first, 3)
        file["categories"] = [
            {"id": 0, "name": "dog", "supercategory": "none"},
            *({**category, "supercategory": "dog"} for category in file["categories"]),
        ]
        data.write_split(tmp_path, split, file)
    dataset = open_coco(f"coco:{tmp_path}")
    assert dataset.class_names == ("cat", "dog", "kite")
    assert "groups of the others without boxes: dog" in dataset.notes[0]


def test_an_image_of_another_size_is_refused(tmp_path):
    data.write_coco(tmp_path)
    path = tmp_path / "train/00.png"
    path.write_bytes(encode(data.picture(0, 64, 40)))
    with pytest.raises(InputError, match=r"00\.png is 40x64 pixels.*says 64x40"):
        open_coco(f"coco:{tmp_path}")
    record = {"image": path.read_bytes(), "key": "a key", "size": (40, 64)}
    with pytest.raises(InputError, match="a key is 40x64 pixels"):
        decode_sized(record)


def change(key, value, place="annotations", number=0):
    def apply(file):
        file[place][number][key] = value

    return apply


def remove(key, place="annotations"):
    def apply(file):
        del file[place][1][key]

    return apply


def repeat(place):
    def apply(file):
        file[place].append(dict(file[place][0]))

    return apply


BROKEN = {
    "no annotations": (lambda file: file.pop("annotations"), "no list of annotations"),
    "images an object": (lambda file: file.update(images={}), "no list of images"),
    "no category": (lambda file: file.update(categories=[]), "has no categories"),
    "no image": (lambda file: file.update(images=[], annotations=[]), "has no images"),
    "no box": (lambda file: file.update(annotations=[]), "has no box in any of its 4 images"),
    "an object": (lambda file: file["annotations"].insert(1, 7), r"annotations\[1\] is 7"),
    "an id of text": (change("id", "0", "images"), r"id of images\[0\] is '0'; .*an integer"),
    "an id of a bool": (change("id", True, "images"), r"id of images\[0\] is True"),
    "no width": (remove("width", "images"), r"width of images\[1\] is missing"),
    "a width of 0": (change("width", 0, "images"), r"width of images\[0\] is 0"),
    "a name of None": (change("name", None, "categories"), r"name of categories\[0\] is None"),
    "a short box": (change("bbox", [1, 2, 3]), r"bbox of annotations\[0\] is \[1, 2, 3\]; .*left"),
    "a box of text": (change("bbox", "1234"), r"bbox of annotations\[0\] is '1234'"),
    "no box of one": (remove("bbox"), r"bbox of annotations\[1\] is missing"),
    "an infinite box": (change("bbox", [0, 0, float("inf"), 1]), "inf"),
    "a crowd of 2": (change("iscrowd", 2), r"iscrowd of annotations\[0\] is 2; expected 0 or 1"),
    "an area of text": (change("area", "9"), r"area of annotations\[0\] is '9'"),
    "a category": (change("category_id", 5), "category ids that its categories do not have: 5"),
    "two images": (repeat("images"), "images have ids more than once: 0"),
    "two categories": (repeat("categories"), "categories have ids more than once: 3"),
    "two names": (change("name", "cat", "categories", 1), "names of categories more than once"),
    "another name": (change("name", "cow", "categories", 1), "category 7 is 'cow' in .* and 'dog'"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_wrong_file_is_refused(case, tmp_path):
    file = data.content(0, 4)
    data.write_split(tmp_path, "train", file)
    data.write_split(tmp_path, "val", data.content(100, 2))
    apply, message = BROKEN[case]
    apply(file)
    (tmp_path / "annotations/instances_train.json").write_text(json.dumps(file))
    with pytest.raises(InputError, match=message) as error:
        open_coco(f"coco:{tmp_path}")
    assert "\n" not in str(error.value)


def test_other_categories_in_the_evaluation_are_refused(tmp_path):
    data.write_coco(tmp_path)
    path = tmp_path / "annotations/instances_val.json"
    file = json.loads(path.read_text())
    file["categories"].append({"id": 91, "name": "cow"})
    path.write_text(json.dumps(file))
    open_coco(f"coco:{tmp_path}")  # it has no box
    file["annotations"][0]["category_id"] = 91
    path.write_text(json.dumps(file))
    with pytest.raises(InputError, match=r"boxes of categories that .* does not have: cow"):
        open_coco(f"coco:{tmp_path}")


def test_another_layout_is_refused(tmp_path):
    def refused(match, name=f"coco:{tmp_path}", **splits):
        with pytest.raises(InputError, match=match):
            open_coco(name, **splits)

    refused("expected coco:PATH", "coco:")
    refused("no such folder", "coco:/nowhere")
    refused("'auto': .* has none; expected PATH/annotations")
    data.write_coco(tmp_path)
    refused(r"'other': .* has annotation files of \['train', 'val'\]", train_split="other")
    copy = tmp_path / "train.json"
    copy.write_text("{")
    refused(r"there are .*instances_train\.json and .*/train\.json; remove")
    (tmp_path / "annotations/instances_train.json").unlink()
    refused(r"train\.json is not a JSON file")
    copy.write_text("[]")
    refused("no list of images and no list of annotations and no list of categories")
    copy.write_text(json.dumps(data.content(50, 3)))
    refused(r"its images, such as '50\.png', are in none of")
