"""Small folders of images with boxes and masks, in COCO's form."""

import json
import re
from pathlib import Path

import numpy as np
import pycocotools.mask
from ml_collections import ConfigDict
from records import encode

from resnest_jax.config import default_config

CLASSES = {3: "cat", 7: "dog", 90: "kite"}  # ids with gaps
SIZES = ((40, 64), (64, 40), (48, 48), (36, 64))  # height, width


def picture(seed: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def entry(image: int, category: int, box, **fields) -> dict:
    """Return an annotation; the box is (left, top, width, height)."""
    area = box[2] * box[3]
    return {"image_id": image, "category_id": category, "bbox": [*box], "area": area} | fields


def polygon(x, y, width, height) -> list[float]:
    """Return an octagon that touches the sides of a box."""
    u = np.array([(3, 0), (7, 0), (10, 3), (10, 7), (7, 10), (3, 10), (0, 7), (0, 3)]) / 10
    return ((x, y) + u * (width, height)).ravel().tolist()


def code(segmentation: list[list[float]], height: int, width: int) -> dict:
    """Return polygons as a run-length code."""
    codes = pycocotools.mask.frPyObjects(segmentation, height, width)
    merged = pycocotools.mask.merge(codes)
    return {"size": [height, width], "counts": merged["counts"].decode()}


def content(first: int, count: int) -> dict:
    """Return images of several sizes, and one to three boxes in each.

    The segmentations are polygons in some images, run-length codes in others.
    """
    rng = np.random.default_rng(first)
    images, objects = [], []
    for i in range(first, first + count):
        height, width = SIZES[i % len(SIZES)]
        images.append({"id": i, "file_name": f"{i:02}.png", "height": height, "width": width})
        for _ in range(rng.integers(1, 4)):
            x, y = (int(rng.integers(0, side - 16)) for side in (width, height))
            box = (x, y, *rng.integers(8, 17, 2).tolist())
            own = [polygon(*box)]
            mask = code(own, height, width) if i % 3 == 0 else own
            fields = {"id": len(objects), "iscrowd": 0, "segmentation": mask}
            objects.append(entry(i, int(rng.choice([*CLASSES])), box, **fields))
    return {"images": images, "annotations": objects, "categories": categories()}


def categories() -> list[dict]:
    return [{"id": i, "name": name, "supercategory": "thing"} for i, name in CLASSES.items()]


def write_split(root: Path, split: str, file: dict, name: str = "annotations/instances_{}.json"):
    """Write an annotation file and its images."""
    for image in file["images"]:
        path = root / split / image["file_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(picture(image["id"], image["height"], image["width"])))
    path = root / name.format(split)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(file))


def write_coco(root: Path, train: int = 10, held_out: int = 5) -> tuple[dict, dict]:
    """Write a data set; return the content of its two annotation files."""
    files = content(0, train), content(100, held_out)
    for split, file in zip(("train", "val"), files, strict=True):
        write_split(root, split, file)
    return files


def data_config(root: Path, **overrides) -> ConfigDict:
    """Return a run on a data set; ``__`` in the name of an override stands for a dot."""
    config = default_config("detection")
    values = {
        "dataset": f"coco:{root}",
        "batch_size": 2,
        "data.short_sides": (24, 32),
        "data.long_side": 64,
        "data.max_objects": 4,
        "evaluation.short_side": 32,
        "evaluation.view_sides": (24, 40),
        "evaluation.view_long_side": 80,
    }
    values |= {key.replace("__", "."): value for key, value in overrides.items()}
    config.update_from_flattened_dict(values)
    return config


def tiny_config(root: Path, **overrides) -> ConfigDict:
    """Return a run of a few steps of a small network, see ``data_config``."""
    small = {
        "batch_size": 8,
        "model.backbone": "resnet50",
        "model.stage_sizes": (1, 1, 1, 1),
        "model.planes": (8, 8, 8, 8),
        "model.stem_width": 4,
        "model.frozen_stages": 0,
        "model.features": 8,
        "model.hidden": 16,
        "model.anchor_sizes": (8, 12, 16, 24, 32),
        "model.anchor_ratios": (1.0,),
        "model.rpn_samples": 16,
        "model.train_candidates": 20,
        "model.test_candidates": 20,
        "model.train_proposals": 16,
        "model.test_proposals": 8,
        "model.roi_samples": 8,
        "model.detections": 6,
        "model.score_threshold": 0.01,
        "steps": 6,
        "eval_every_steps": 3,
        "log_every_steps": 1,
        "optimizer.base_learning_rate": 2.56,
        "optimizer.schedule": "cosine",
        "optimizer.weight_decay": 1e-4,
        "optimizer.clip_norm": 5.0,
    }
    return data_config(root, **{key.replace(".", "__"): v for key, v in small.items()} | overrides)


def exchanged_shapes(program: str) -> list[list[str]]:
    """Return the shapes of the arrays that devices send each other, other than sums."""
    exchanged = re.findall(
        r"= (\(.*?\)|\S+) (?:all-gather|all-to-all|collective-permute)(?:-start)?\(", program
    )
    return [shape.split(",") for shape in re.findall(r"\[([\d,]+)\]", " ".join(exchanged))]
