"""Detect objects in photos: pictures with boxes and masks, and one JSON of all detections."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image

from resnest_jax.compiling import compiler_options
from resnest_jax.config.detection import eval_sides
from resnest_jax.data.decode import upright_size
from resnest_jax.data.geometry import Size
from resnest_jax.data.instances import encode_mask, paste_mask
from resnest_jax.files import make_folder, write_json, writing
from resnest_jax.tasks.detection import task, views
from resnest_jax.tasks.detection.canvases import make_canvases, view_canvases
from resnest_jax.tasks.detection.draw import (
    class_colours,
    draw_boxes,
    draw_masks,
    label_map,
    mask_colours,
    save_label_map,
)
from resnest_jax.tasks.detection.metrics import to_original
from resnest_jax.tasks.detection.transforms import EvalTransform
from resnest_jax.tasks.photos import find_images, output_names, readable_photos
from resnest_jax.tasks.progress import image_bar
from resnest_jax.training.mesh import make_local_mesh
from resnest_jax.weights.detection import Detector

RESULTS = "detections.json"
THRESHOLD = 0.5  # least score of the boxes that are drawn and counted, by default


class Found(NamedTuple):
    """Detections of a photo, best first.

    Attributes:
      boxes: (D, 4) in pixels of the photo.
      scores, classes: (D,).
      masks: probabilities in the cells of each box (D, P, P); None of a model without masks.
    """

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    masks: np.ndarray | None


def run(
    detector: Detector,
    files: Sequence[str],
    output: Path,
    threshold: float = THRESHOLD,
    *,
    multi_scale: bool = False,
) -> int:
    """Detect objects in images; print how many each has, and unreadable files on stderr.

    Writes ``NAME_boxes.png``, the photo with the boxes, their classes and scores, for each image,
    and ``detections.json``: ``images``, each with ``file``, ``width``, ``height`` and
    ``detections``, which have ``class``, ``score`` and ``box`` (left, top, right and bottom in
    pixels), best first. Those are all whose score exceeds the run's ``model.score_threshold``.

    With masks the pictures have them too, each detection has ``mask``, COCO's compressed run-length
    code, and there is ``NAME_instances.png``: the pixels of the first, second, ... detection have
    the value 1, 2, ..., those of several that of the best, all others 0; see ``save_label_map``.

    Args:
      files: images, and folders of images.
      output: directory to write.
      threshold: least score of the boxes that are drawn and counted.
      multi_scale: detect in views, see ``evaluation.Options``.

    Returns:
      The exit code: 1 if any file could not be read, else 0.

    Raises:
      InputError: if there are no images, two would get the same name, or the directory cannot be
        written.
    """
    paths = find_images(files)
    names = output_names(paths)
    make_folder("output", output)
    detect, class_names = make_detect(detector, _sizes(paths), multi_scale), detector.class_names
    rows: list[dict[str, Any]] = []
    with image_bar(len(paths)) as bar:
        for path, photo in readable_photos(paths):
            found = detect(photo)
            drawn = int(np.sum(found.scores >= threshold))
            rows.append(_row(path, photo, found, class_names))
            _draw(photo, found, drawn, class_names, output / names[path])
            bar.write(_summary(path, found.classes[:drawn], class_names))
            bar.update()
    with writing("output", output):
        write_json(output / RESULTS, {"images": rows})
    return int(len(rows) < len(paths))


def make_detect(
    detector: Detector, sizes: np.ndarray, multi_scale: bool = False
) -> Callable[[np.ndarray], Found]:
    """Make ``detect(photo)`` of RGB uint8 (H, W, 3); one program is compiled for each canvas.

    Args:
      sizes: heights and widths of all photos, int (N, 2).
      multi_scale: see ``run``.
    """
    model, limits = detector.model, detector.config.evaluation
    if multi_scale:
        canvases = view_canvases(sizes, limits.view_sides, limits.view_long_side)
        transform, flip = views.ViewsTransform(canvases), detector.config.data.flip
        apply = views.make_detect(model, detector.variables, flip, make_local_mesh(1))
    else:
        transform = EvalTransform(make_canvases(sizes, *eval_sides(detector.config)), 1)
        program = jax.jit(partial(task.detect, model), compiler_options=compiler_options())
        apply = partial(program, jax.device_put(detector.variables))

    def detect(photo: np.ndarray) -> Found:
        element = {"image": photo, "boxes": np.zeros((0, 4)), "classes": np.zeros(0), "index": 0}
        made = transform.map(element)
        batch = {name: value[None] for name, value in made.items()}
        boxes, scores, classes, valid, *masks = (part[0] for part in jax.device_get(apply(batch)))
        boxes = to_original(boxes[valid], made["size"], made["original_size"])
        return Found(boxes, scores[valid], classes[valid], masks[0][valid] if masks else None)

    return detect


def _sizes(paths: Sequence[Path]) -> np.ndarray:
    """Return the heights and widths of the photos that can be read, int (N, 2)."""
    sizes = []
    for path in paths:
        try:
            width, height = upright_size(path)
        except Exception:  # a broken file, which decoding reports; Pillow raises many kinds
            continue
        sizes += [(height, width), (width, height)]  # a file may turn its image behind the pixels
    return np.array(sizes, int).reshape(-1, 2)


def _pasted(found: Found, size: Size) -> Iterator[np.ndarray]:
    """Yield the pixels of each detection that has a mask."""
    masks = () if found.masks is None else found.masks
    return (paste_mask(mask, box, size) for mask, box in zip(masks, found.boxes, strict=False))


def _draw(
    photo: np.ndarray, found: Found, count: int, class_names: Sequence[str], start: Path
) -> None:
    """Write the pictures of the first detections of a photo; their names have a common start."""
    boxes, scores, classes = found.boxes[:count], found.scores[:count], found.classes[:count]
    colours = class_colours(classes, len(class_names))
    picture = photo
    if found.masks is not None:
        size = photo.shape[:2]
        labels = label_map(itertools.islice(_pasted(found, size), count), size)
        colours = mask_colours(boxes, classes, len(class_names))
        picture = draw_masks(photo, labels, colours)
        save_label_map(labels, colours, Path(f"{start}_instances.png"))
    texts = [f"{class_names[i]} {score:.2f}" for i, score in zip(classes, scores, strict=True)]
    with writing("output", start.parent):
        drawn = Image.fromarray(draw_boxes(picture, boxes, texts, colours))
        drawn.save(f"{start}_boxes.png")


def _row(path: Path, photo: np.ndarray, found: Found, class_names: Sequence[str]) -> dict[str, Any]:
    height, width = photo.shape[:2]
    detections: list[dict[str, Any]] = [
        {
            "class": class_names[label],
            "score": round(float(score), 6),
            "box": [round(float(side), 2) for side in box],
        }
        for box, score, label in zip(found.boxes, found.scores, found.classes, strict=True)
    ]
    for entry, pixels in zip(detections, _pasted(found, (height, width)), strict=False):
        entry["mask"] = encode_mask(pixels)
    return {"file": str(path), "width": width, "height": height, "detections": detections}


def _summary(path: Path, classes: np.ndarray, class_names: Sequence[str]) -> str:
    counts = np.bincount(classes, minlength=len(class_names))
    lines = [f"{counts[i]:5d}  {class_names[i]}" for i in np.argsort(-counts, kind="stable")]
    return "\n".join([str(path), *lines[: np.count_nonzero(counts)]])
