"""Detect objects in photos: pictures with boxes, and one JSON of all detections."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import numpy as np
from PIL import Image

from resnest_jax.data.decode import upright_size
from resnest_jax.files import make_folder, write_json, writing
from resnest_jax.models.detection.detections import Detections
from resnest_jax.models.inputs import normalize_padded
from resnest_jax.tasks.detection.canvases import Canvases, make_canvases
from resnest_jax.tasks.detection.draw import class_colours, draw_boxes
from resnest_jax.tasks.detection.metrics import to_original
from resnest_jax.tasks.detection.transforms import EvalTransform
from resnest_jax.tasks.photos import find_images, output_names, readable_photos
from resnest_jax.tasks.progress import image_bar
from resnest_jax.training.task import Variables
from resnest_jax.weights.detection import Detector

RESULTS = "detections.json"
THRESHOLD = 0.5  # least score of the boxes that are drawn and counted, by default


class Found(NamedTuple):
    """Detections of a photo, best first: boxes (D, 4) in its pixels, scores and classes (D,)."""

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray


def run(
    detector: Detector, files: Sequence[str], output: Path, threshold: float = THRESHOLD
) -> int:
    """Detect objects in images; print how many each has, and unreadable files on stderr.

    Writes ``NAME_boxes.png``, the photo with the boxes, their classes and scores, for each image,
    and ``detections.json``: ``images``, each with ``file``, ``width``, ``height`` and
    ``detections``, which have ``class``, ``score`` and ``box`` (left, top, right and bottom in
    pixels), best first. Those are all whose score exceeds the run's ``model.score_threshold``.

    Args:
      files: images, and folders of images.
      output: directory to write.
      threshold: least score of the boxes that are drawn and counted.

    Returns:
      The exit code: 1 if any file could not be read, else 0.

    Raises:
      InputError: if there are no images, two would get the same name, or the directory cannot be
        written.
    """
    paths = find_images(files)
    names = output_names(paths)
    make_folder("output", output)
    detect, class_names = make_detect(detector, _canvases(detector, paths)), detector.class_names
    rows: list[dict[str, Any]] = []
    with image_bar(len(paths)) as bar:
        for path, photo in readable_photos(paths):
            found = detect(photo)
            drawn = Found(*(part[found.scores >= threshold] for part in found))
            texts = [
                f"{class_names[label]} {score:.2f}"
                for label, score in zip(drawn.classes, drawn.scores, strict=True)
            ]
            colours = class_colours(drawn.classes, len(class_names))
            picture = Image.fromarray(draw_boxes(photo, drawn.boxes, texts, colours))
            with writing("output", output):
                picture.save(output / f"{names[path]}_boxes.png")
            rows.append(_row(path, photo, found, class_names))
            bar.write(_summary(path, drawn, class_names))
            bar.update()
    with writing("output", output):
        write_json(output / RESULTS, {"images": rows})
    return int(len(rows) < len(paths))


def make_detect(detector: Detector, canvases: Canvases) -> Callable[[np.ndarray], Found]:
    """Make ``detect(photo)`` of RGB uint8 (H, W, 3); one program is compiled for each canvas."""
    transform = EvalTransform(canvases, max_objects=1)
    model, variables = detector.model, jax.device_put(detector.variables)

    @jax.jit
    def apply(variables: Variables, images: jax.Array, sizes: jax.Array) -> Detections:
        inputs = normalize_padded(images, sizes)
        found = cast(tuple, model.apply(variables, inputs, sizes, method="detect"))
        return Detections(*found[:4])  # without masks

    def detect(photo: np.ndarray) -> Found:
        element = {"image": photo, "boxes": np.zeros((0, 4)), "classes": np.zeros(0), "index": 0}
        resized = transform.map(element)
        size = resized["size"]
        boxes, scores, classes, valid = (
            part[0] for part in jax.device_get(apply(variables, resized["image"][None], size[None]))
        )
        boxes = to_original(boxes[valid], size, np.array(photo.shape[:2]))
        return Found(boxes, scores[valid], classes[valid])

    return detect


def _canvases(detector: Detector, paths: Sequence[Path]) -> Canvases:
    """Return a wide and a high canvas, the smallest that hold the photos that can be read."""
    sizes = []
    for path in paths:
        try:
            width, height = upright_size(path)
        except Exception:  # a broken file, which decoding reports; Pillow raises many kinds
            continue
        sizes += [(height, width), (width, height)]  # a file may turn its image behind the pixels
    config = detector.config
    return make_canvases(
        np.array(sizes, int).reshape(-1, 2), config.evaluation.short_side, config.data.long_side
    )


def _row(path: Path, photo: np.ndarray, found: Found, class_names: Sequence[str]) -> dict[str, Any]:
    height, width = photo.shape[:2]
    return {
        "file": str(path),
        "width": width,
        "height": height,
        "detections": [
            {
                "class": class_names[label],
                "score": round(float(score), 6),
                "box": [round(float(side), 2) for side in box],
            }
            for box, score, label in zip(*found, strict=True)
        ],
    }


def _summary(path: Path, found: Found, class_names: Sequence[str]) -> str:
    counts = np.bincount(found.classes, minlength=len(class_names))
    lines = [f"{counts[i]:5d}  {class_names[i]}" for i in np.argsort(-counts, kind="stable")]
    return "\n".join([str(path), *lines[: np.count_nonzero(counts)]])
