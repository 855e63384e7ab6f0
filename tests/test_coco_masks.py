"""Masks of objects in COCO's form: what is read, left out and refused; those of batches."""

import json
import pickle

import detection_data as data
import numpy as np
import pytest
from pycocotools import mask as coco
from pycocotools.coco import COCO
from records import encode, take

from resnest_jax.config.detection import has_masks
from resnest_jax.data.sources.coco import open_coco
from resnest_jax.errors import InputError
from resnest_jax.models.zoo import RCNNS, create_model
from resnest_jax.tasks.detection.loading import make_batches, open_boxes
from resnest_jax.tasks.loading import loader_options

VAL = "annotations/instances_val.json"


def rewrite(root, split, change):
    """Change the content of an annotation file."""
    path = root / f"annotations/instances_{split}.json"
    file = json.loads(path.read_text())
    change(file)
    path.write_text(json.dumps(file))


def test_records_and_truth_have_the_masks_of_the_file(tmp_path):
    file, held_out = data.write_coco(tmp_path)
    dataset = open_coco(f"coco:{tmp_path}", masks=True)
    records = pickle.loads(pickle.dumps(dataset.train))
    for i, image in enumerate(file["images"]):
        own = [o for o in file["annotations"] if o["image_id"] == image["id"]]
        assert records[i]["segmentations"] == [o["segmentation"] for o in own]
    assert "segmentations" not in dataset.eval[0]
    truth = dataset.truth.content
    for entry, expected in zip(truth["annotations"], held_out["annotations"], strict=True):
        for field in ("segmentation", "area", "bbox", "image_id"):
            assert entry[field] == expected[field]
    plain = open_coco(f"coco:{tmp_path}")
    assert "segmentations" not in plain.train[0]
    assert "segmentation" not in plain.truth.content["annotations"][0]


def test_objects_without_a_pixel_or_a_polygon(tmp_path):
    """Training leaves them out; to pycocotools they are empty masks."""
    masks = [
        [[1, 1, 9, 9], data.polygon(2, 3, 8, 8)],
        [[1, 1, 9, 9]],
        {"size": [40, 64], "counts": [2560]},
        {"size": [40, 64], "counts": [2500, 60]},
    ]
    file = data.content(0, 4)
    file["annotations"] = [data.entry(0, 7, (2, 3, 8, 8), segmentation=mask) for mask in masks]
    file["annotations"].append(data.entry(1, 3, (0, 0, 10, 10), segmentation=[[1, 1, 9, 9]]))
    file["annotations"].append(data.entry(2, 3, (0, 0, 10, 10), iscrowd=1))
    for split in ("train", "val"):
        data.write_split(tmp_path, split, file)
    rewrite(tmp_path, "val", lambda file: file["annotations"].pop())
    dataset = open_coco(f"coco:{tmp_path}", masks=True)
    assert len(dataset.train) == 1
    assert dataset.train.counts.tolist() == [2]
    assert dataset.train[0]["segmentations"] == [masks[0][1:], masks[3]]
    notes = "\n".join(dataset.notes)
    lost = "objects whose segmentation has no pixel and no polygon of three points"
    assert f"instances_train.json: 3 {lost}, left out" in notes
    assert "3 images without a box, left out" in notes
    assert f"instances_val.json: 3 {lost}, which count as not found" in notes
    truth = COCO()
    truth.dataset = dataset.truth.content
    truth.createIndex()
    areas = [truth.annToMask(entry).sum() for entry in truth.dataset["annotations"]]
    assert [area > 0 for area in areas] == [True, False, False, True, False]
    assert areas[3] == 60


POLYGON = data.polygon(1, 1, 8, 8)
BROKEN = {
    "missing": (None, "has no segmentation, .* use model.name 'faster_rcnn' or 'cascade_rcnn'"),
    "empty": ([], "has no segmentation, which a model with masks needs"),
    "of another size": ({"size": [64, 40], "counts": [2560]}, r"code is of size \[64, 40\]"),
    "too short": ({"size": [40, 64], "counts": "00"}, "run-length code has 0 pixels"),
    "of text": ({"size": [40, 64], "counts": [2500, "60"]}, "broken: TypeError"),
    "of fractions": ({"size": [40, 64], "counts": [2500.0, 60.0]}, "must be integers"),
    "without counts": ({"size": [40, 64]}, "broken: KeyError"),
    "of odd numbers": ([[*POLYGON, 3.0]], "pairs of finite numbers"),
    "of one list": (POLYGON, "expected a list of polygons"),
    "a word": ("polygon", "expected a list of polygons"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_missing_or_broken_mask_is_named(case, tmp_path):
    segmentation, message = BROKEN[case]
    data.write_coco(tmp_path, train=4, held_out=4)

    def change(file):
        file["annotations"].append(data.entry(file["images"][0]["id"], 7, (1, 1, 8, 8), id=55))
        file["annotations"][-1]["segmentation"] = segmentation

    for split, name in (("train", "00"), ("val", "100")):
        rewrite(tmp_path, split, change)
        where = rf"instances_{split}\.json: annotation 55 of {name}\.png"
        with pytest.raises(InputError, match=rf"{where}.*{message}") as error:
            open_coco(f"coco:{tmp_path}", masks=True)
        assert "\n" not in str(error.value)
        rewrite(tmp_path, split, lambda file: file["annotations"].pop())
        open_coco(f"coco:{tmp_path}", masks=True)
    rewrite(tmp_path, "train", change)
    open_coco(f"coco:{tmp_path}")


def test_evaluation_of_boxes_alone(tmp_path):
    """If no object has a mask; if one of them has none, that is an error."""
    data.write_coco(tmp_path)

    def strip(file, first=0):
        for entry in file["annotations"][first:]:
            del entry["segmentation"]

    options = {"training": False, "masks": True}
    rewrite(tmp_path, "val", lambda file: strip(file, 1))
    with pytest.raises(InputError, match=r"annotation 1 of 100\.png has no segmentation"):
        open_coco(f"coco:{tmp_path}", **options)
    rewrite(tmp_path, "val", lambda file: file["annotations"][0].pop("segmentation"))
    dataset = open_coco(f"coco:{tmp_path}", **options)
    assert "segmentation" not in dataset.truth.content["annotations"][0]
    assert dataset.notes == (f"{tmp_path / VAL} has no segmentation: only the boxes are evaluated",)
    with pytest.raises(InputError, match=r"annotation 0 of 100\.png has no segmentation"):
        open_coco(f"coco:{tmp_path}", masks=True)


@pytest.mark.parametrize("key", ["neg_category_ids", "not_exhaustive_category_ids"])
def test_lvis_is_refused(key, tmp_path):
    data.write_coco(tmp_path)

    def change(file):
        for image in file["images"]:
            del image["file_name"]
            image[key] = [3]

    rewrite(tmp_path, "val", change)
    with pytest.raises(InputError, match=rf"instances_val\.json is LVIS's: .* have {key}, that is"):
        open_coco(f"coco:{tmp_path}")


def test_which_models_have_masks(tmp_path):
    for name in RCNNS:
        for overrides in ({}, {"mask_convolutions": 0}, {"mask_convolutions": 2}):
            keys = {f"model.{key}": value for key, value in overrides.items()}
            config = data.tiny_config(tmp_path, **{"model.name": name}, **keys)
            expected = create_model(name, **overrides).mask_convolutions > 0
            assert has_masks(config) == expected, (name, overrides)


def edges(mask):
    """Return left, top, right and bottom of the pixels of a mask."""
    rows, columns = np.nonzero(mask)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


@pytest.mark.parametrize("crop", [1.0, 0.5])
def test_masks_follow_the_pixels_of_their_objects(crop, tmp_path):
    """Cut, resized, mirrored and padded: one is red, a run-length code; one is green, a polygon."""
    file = data.content(0, 8)
    file["annotations"] = []
    for image in file["images"]:
        size = image["height"], image["width"]
        pixels = np.zeros((*size, 3), np.uint8)
        for channel in (0, 1):
            box = (3 + 16 * channel + image["id"], 6, 12, 20)
            outline = [data.polygon(*box)]
            code = data.code(outline, *size)
            pixels[..., channel] = 255 * coco.decode(code)
            mask = (code, outline)[channel]
            category = (3, 7)[channel]
            file["annotations"].append(data.entry(image["id"], category, box, segmentation=mask))
        image["pixels"] = pixels
    arrays = {image["file_name"]: image.pop("pixels") for image in file["images"]}
    for split in ("train", "val"):
        data.write_split(tmp_path, split, file)
        for name, pixels in arrays.items():
            (tmp_path / split / name).write_bytes(encode(pixels))
    overrides = {"data__short_sides": (60, 90), "data__long_side": 160, "model__name": "mask_rcnn"}
    config = data.data_config(tmp_path, data__crop=crop, **overrides)
    batches = make_batches(config, open_boxes(config), loader_options(config, None, 2))
    specs = [{name: leaf.shape for name, leaf in s.items()} for s in batches.train_specs()]
    for spec in specs:
        _, height, width, _ = spec["image"]
        assert spec["masks"] == (2, 4, height, width // 8)
    found = take(batches.train(0), 8)
    for batch in found:
        assert {name: value.shape for name, value in batch.items()} in specs
        masks = np.unpackbits(batch["masks"], axis=-1).astype(bool)
        assert not masks[~batch["object_valid"]].any()
        assert not batch["boxes"][~batch["object_valid"]].any()
        for image, place in np.argwhere(batch["object_valid"]):
            mask, channel = masks[image, place], batch["classes"][image, place]
            shown = batch["image"][image, ..., channel] > 127
            if (mask | shown).sum() > 300:  # not the edges of what is cut off
                assert (mask & shown).sum() > 0.9 * (mask | shown).sum()
            np.testing.assert_allclose(edges(mask), batch["boxes"][image, place], atol=1.5)
    count = sum(batch["object_valid"].sum() for batch in found)
    assert count == 32 if crop == 1 else 16 <= count < 32
    assert "masks" not in next(batches.eval())


def test_chosen_objects_keep_their_masks(tmp_path):
    """Of more than ``max_objects``; each mask is in its own box."""
    file = data.content(0, 2)
    for i in range(9):
        box = (6 * i, 3 * i, 8, 10)
        entry = data.entry(0, 7, box, id=100 + i, segmentation=[data.polygon(*box)])
        file["annotations"].append(entry)
    for split in ("train", "val"):
        data.write_split(tmp_path, split, file)
    config = data.data_config(tmp_path, model__name="cascade_mask_rcnn", batch_size=1)
    dataset = open_boxes(config)
    assert dataset.train.counts.max() > config.data.max_objects
    batches = make_batches(config, dataset, loader_options(config, None, 1))
    for batch in take(batches.train(0), 12):
        masks = np.unpackbits(batch["masks"][0], axis=-1)
        for mask, box in zip(masks, batch["boxes"][0], strict=True):
            if mask.any():
                np.testing.assert_allclose(edges(mask), box, atol=1.5)
            else:
                assert not box.any()
