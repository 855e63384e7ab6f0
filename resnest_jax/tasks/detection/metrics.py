"""Average precision of boxes as COCO defines it, by pycocotools."""

import collections
import contextlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from resnest_jax.data.sources.coco_boxes import LEAST_SIDE, GroundTruth
from resnest_jax.errors import import_package
from resnest_jax.files import write_atomic
from resnest_jax.training.distributed import gather_bytes, is_main
from resnest_jax.training.task import EvalOutput, HostBatch

# COCO's twelve figures in its order: average precision over IoU 0.5 to 0.95, at 0.5, at 0.75, by
# area; average recall with 1, 10 and 100 detections per image, by area.
FIGURES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
FIGURES += ("ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large")
_COLUMNS = 7  # of a row: index of the image, class, score, left, top, width, height


class Scores(NamedTuple):
    """Scores of an evaluation; NaN where there is no object.

    Attributes:
      figures: of ``FIGURES``.
      per_class: average precision of each class.
      objects: number of objects of each class, crowd regions not counted.
    """

    figures: list[float]
    per_class: list[float]
    objects: list[int]


class CocoAP:
    """Metric of detection: COCO's figures over the images that were seen.

    Attributes:
      figures, per_class, objects: see ``Scores``; after ``compute``.
    """

    def __init__(self, truth: GroundTruth):
        self.figures, self.per_class, self.objects = Scores([], [], [])
        self._truth = truth
        self._rows: list[np.ndarray] = []  # float64 (N, _COLUMNS)
        self._seen: list[int] = []

    def update(self, output: EvalOutput, batch: HostBatch) -> None:
        """Add the detections of a batch.

        Args:
          output: ``per_image`` is boxes (B, D, 4) in pixels of the resized image, scores (B, D),
            classes (B, D), and whether each is a detection (B, D).
          batch: with ``valid``, ``index``, ``size`` and ``original_size``.
        """
        boxes, scores, classes, valid = output.per_image
        for i in np.flatnonzero(batch["valid"]):
            chosen = valid[i]
            original = to_original(boxes[i][chosen], batch["size"][i], batch["original_size"][i])
            whole = np.all(original[:, 2:] - original[:, :2] > LEAST_SIDE, 1)
            self.add(
                int(batch["index"][i]),
                original[whole],
                scores[i][chosen][whole],
                classes[i][chosen][whole],
            )

    def add(self, index: int, boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray) -> None:
        """Add the detections of an image.

        Args:
          index: of the record.
          boxes: left, top, right and bottom in pixels of the original image (D, 4).
          scores, classes: (D,).
        """
        self._seen.append(index)
        rows = np.empty((len(boxes), _COLUMNS))
        rows[:, 0], rows[:, 1], rows[:, 2] = index, classes, scores
        rows[:, 3:5], rows[:, 5:] = boxes[:, :2], boxes[:, 2:].astype(float) - boxes[:, :2]
        self._rows.append(rows)

    def compute(self) -> dict[str, float]:
        """Return the figures as ``box_ap``, ``box_ap50`` and so on; those without objects are left
        out, but for ``box_ap``, which is NaN then.
        """
        self._gather()
        # In one process: pycocotools takes a while for many images.
        scores = _evaluate(self._truth, self.results(), self._seen) if is_main() else None
        first, *_ = gather_bytes(json.dumps(scores).encode())
        self.figures, self.per_class, self.objects = Scores(*json.loads(first))
        named = dict(zip(FIGURES, self.figures, strict=True))
        return {
            f"box_{name}": value
            for name, value in named.items()
            if name == "ap" or not np.isnan(value)
        }

    def results(self) -> list[dict[str, Any]]:
        """Return the detections in the form that COCO's server takes, after ``compute``.

        They have the ids of the annotation file, and boxes (left, top, width, height).
        """
        images, categories = self._truth.image_ids, self._truth.category_ids
        return [
            {
                "image_id": images[int(index)],
                "category_id": categories[int(label)],
                "bbox": box,
                "score": score,
            }
            for rows in self._rows
            for index, label, score, *box in rows.tolist()
        ]

    def write_results(self, path: Path) -> None:
        """Write ``results`` as JSON.

        Raises:
          OSError: if the file cannot be written.
        """
        write_atomic(path, json.dumps(self.results()).encode())

    def _gather(self) -> None:
        """Share the detections with all processes; put them in the order of the images."""
        rows = np.concatenate([np.zeros((0, _COLUMNS)), *self._rows])
        parts = [np.frombuffer(part) for part in gather_bytes(rows.tobytes())]
        rows = np.concatenate(parts).reshape(-1, _COLUMNS)
        self._rows = [rows[np.argsort(rows[:, 0], kind="stable")]]
        seen = gather_bytes(np.array(self._seen, np.int64).tobytes())
        self._seen = sorted(np.concatenate([np.frombuffer(s, np.int64) for s in seen]).tolist())


def to_original(boxes: np.ndarray, size: np.ndarray, original: np.ndarray) -> np.ndarray:
    """Scale boxes (N, 4) of a resized image to the original, and clip them to it.

    Args:
      size, original: height and width.
    """
    height, width = original
    y, x = original / size
    return np.clip(boxes * np.array([x, y, x, y]), 0, [width, height] * 2)


def _evaluate(truth: GroundTruth, results: list[dict[str, Any]], seen: Sequence[int]) -> Scores:
    """Compare detections with the truth of the images of some indices."""
    coco = import_package("pycocotools.coco", "resnest_jax[detection]")
    cocoeval = import_package("pycocotools.cocoeval", "resnest_jax[detection]")
    found = truth.content | {
        # As ``COCO.loadRes`` fills them in, which does not take an empty list.
        "annotations": [
            {"id": number, "iscrowd": 0, "area": entry["bbox"][2] * entry["bbox"][3]} | entry
            for number, entry in enumerate(results, start=1)
        ]
    }
    with contextlib.redirect_stdout(io.StringIO()):
        both = []
        for content in (truth.content, found):
            both.append(coco.COCO())
            both[-1].dataset = content
            both[-1].createIndex()
        evaluation = cocoeval.COCOeval(*both, "bbox")
        evaluation.params.imgIds = [truth.image_ids[index] for index in seen]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"]  # (IoU, recall, class, area, number of detections)
    figures = np.where(evaluation.stats < 0, np.nan, evaluation.stats)
    per_class = [_mean(precision[:, :, k, 0, -1]) for k in range(precision.shape[2])]
    images = set(evaluation.params.imgIds)
    whole = [o for o in truth.content["annotations"] if not o["iscrowd"]]
    counts = collections.Counter(o["category_id"] for o in whole if o["image_id"] in images)
    return Scores(figures.tolist(), per_class, [counts[i] for i in truth.category_ids])


def _mean(precision: np.ndarray) -> float:
    """Return the mean over the cells that are not -1, NaN if there are none."""
    cells = precision[precision > -1]
    return float(cells.mean()) if cells.size else float("nan")
