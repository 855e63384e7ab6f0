"""Average precision of boxes and masks as COCO defines it, by pycocotools."""

import collections
import contextlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from resnest_jax.data.instances import encode_mask, paste_mask
from resnest_jax.data.sources.coco_boxes import LEAST_SIDE, GroundTruth
from resnest_jax.errors import import_package
from resnest_jax.files import write_atomic
from resnest_jax.training.distributed import gather_bytes, is_main
from resnest_jax.training.task import EvalOutput, HostBatch

# COCO's twelve figures in its order: average precision over IoU 0.5 to 0.95, at 0.5, at 0.75, by
# area; average recall with 1, 10 and 100 detections per image, by area.
FIGURES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
FIGURES += ("ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large")
# What is compared, and pycocotools' name of it and of its field in a detection.
KINDS = {"box": ("bbox", "bbox"), "mask": ("segm", "segmentation")}
_COLUMNS = 7  # of a row: index of the image, class, score, left, top, width, height


class Scores(NamedTuple):
    """Scores of an evaluation of boxes or masks; NaN where there is no object.

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

    Args:
      truth: objects of the images.
      masks: the detections have masks. They are compared if the objects have some.

    Attributes:
      kinds: ``("box",)`` or ``("box", "mask")``: what is compared.
      scores: those of each kind, after ``compute``.
    """

    def __init__(self, truth: GroundTruth, masks: bool = False):
        has_masks = masks and any("segmentation" in o for o in truth.content["annotations"])
        self.kinds = (*KINDS,) if has_masks else ("box",)
        self.scores: dict[str, Scores] = {}
        self._truth = truth
        self._rows: list[np.ndarray] = []  # float64 (N, _COLUMNS)
        self._codes: list[str] = []  # of each row, the run-length code without its size
        self._seen: list[int] = []

    def update(self, output: EvalOutput, batch: HostBatch) -> None:
        """Add the detections of a batch.

        Args:
          output: ``per_image`` is boxes (B, D, 4) in pixels of the resized image, scores (B, D),
            classes (B, D), whether each is a detection (B, D) and, with masks, their probabilities
            in the cells of the boxes (B, D, P, P).
          batch: with ``valid``, ``index``, ``size`` and ``original_size``.
        """
        boxes, scores, classes, valid, *masks = output.per_image
        for i in np.flatnonzero(batch["valid"]):
            size = batch["original_size"][i]
            original = to_original(boxes[i], batch["size"][i], size)
            whole = valid[i] & np.all(original[:, 2:] - original[:, :2] > LEAST_SIDE, 1)
            codes = []
            if "mask" in self.kinds:
                height, width = size.tolist()
                codes = [
                    encode_mask(paste_mask(mask, box, (height, width)))["counts"]
                    for mask, box in zip(masks[0][i][whole], original[whole], strict=True)
                ]
            index = int(batch["index"][i])
            self.add(index, original[whole], scores[i][whole], classes[i][whole], codes)

    def add(
        self,
        index: int,
        boxes: np.ndarray,
        scores: np.ndarray,
        classes: np.ndarray,
        codes: Sequence[str] = (),
    ) -> None:
        """Add the detections of an image.

        Args:
          index: of the record.
          boxes: left, top, right and bottom in pixels of the original image (D, 4).
          scores, classes: (D,).
          codes: with masks, ``counts`` of the compressed run-length codes in the original image.
        """
        self._seen.append(index)
        rows = np.empty((len(boxes), _COLUMNS))
        rows[:, 0], rows[:, 1], rows[:, 2] = index, classes, scores
        rows[:, 3:5], rows[:, 5:] = boxes[:, :2], boxes[:, 2:].astype(float) - boxes[:, :2]
        self._rows.append(rows)
        self._codes += codes

    def compute(self) -> dict[str, float]:
        """Return the figures as ``box_ap``, ``box_ap50``, ``mask_ap`` and so on; those without
        objects are left out, but for ``box_ap`` and ``mask_ap``, which are NaN then.
        """
        self._gather()
        computed = None
        if is_main():  # in one process: pycocotools takes a while for many images
            results = self.results()
            computed = [_evaluate(self._truth, results, self._seen, kind) for kind in self.kinds]
        first, *_ = gather_bytes(json.dumps(computed).encode())
        of_kinds = zip(self.kinds, json.loads(first), strict=True)
        self.scores = {kind: Scores(*scores) for kind, scores in of_kinds}
        return {
            f"{kind}_{name}": value
            for kind, scores in self.scores.items()
            for name, value in zip(FIGURES, scores.figures, strict=True)
            if name == "ap" or not np.isnan(value)
        }

    def results(self) -> list[dict[str, Any]]:
        """Return the detections in the form that COCO's server takes, after ``compute``.

        They have the ids of the annotation file, boxes (left, top, width, height) and, with masks,
        a compressed run-length code as ``segmentation``.
        """
        images, categories = self._truth.image_ids, self._truth.category_ids
        results = [
            {
                "image_id": images[int(index)],
                "category_id": categories[int(label)],
                "bbox": box,
                "score": score,
            }
            for rows in self._rows
            for index, label, score, *box in rows.tolist()
        ]
        if "mask" in self.kinds:
            sizes = {i["id"]: [i["height"], i["width"]] for i in self._truth.content["images"]}
            for entry, code in zip(results, self._codes, strict=True):
                entry["segmentation"] = {"size": sizes[entry["image_id"]], "counts": code}
        return results

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
        order = np.argsort(rows[:, 0], kind="stable")
        self._rows = [rows[order]]
        if "mask" in self.kinds:
            lines = gather_bytes("".join(f"{code}\n" for code in self._codes).encode())
            codes = b"".join(lines).decode().splitlines()
            self._codes = [codes[i] for i in order]
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


def _evaluate(
    truth: GroundTruth, results: list[dict[str, Any]], seen: Sequence[int], kind: str
) -> Scores:
    """Compare detections with the truth of the images of some indices."""
    coco = import_package("pycocotools.coco", "resnest_jax[detection]")
    cocoeval = import_package("pycocotools.cocoeval", "resnest_jax[detection]")
    iou_type, field = KINDS[kind]
    areas = _areas([entry[field] for entry in results], kind)
    found = truth.content | {
        # As ``COCO.loadRes`` fills them in, which does not take an empty list.
        "annotations": [
            {"id": number, "iscrowd": 0, "area": area, field: entry[field]}
            | {key: entry[key] for key in ("image_id", "category_id", "score")}
            for number, (entry, area) in enumerate(zip(results, areas, strict=True), start=1)
        ]
    }
    with contextlib.redirect_stdout(io.StringIO()):
        both = []
        for content in (truth.content, found):
            both.append(coco.COCO())
            both[-1].dataset = content
            both[-1].createIndex()
        evaluation = cocoeval.COCOeval(*both, iou_type)
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


def _areas(shapes: list[Any], kind: str) -> list[float]:
    """Return the pixels of boxes (left, top, width, height) or of run-length codes."""
    if kind == "box":
        return [width * height for _, _, width, height in shapes]
    masks = import_package("pycocotools.mask", "resnest_jax[detection]")
    return [float(masks.area(shape)) for shape in shapes]  # more than 255 at once overflow


def _mean(precision: np.ndarray) -> float:
    """Return the mean over the cells that are not -1, NaN if there are none."""
    cells = precision[precision > -1]
    return float(cells.mean()) if cells.size else float("nan")
