"""Names of the entries of the authors' detectors, which are those of detectron2."""

import re
from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any

import numpy as np

from resnest_jax.models.detection.anchors import anchors
from resnest_jax.models.detection.fpn import LEVELS
from resnest_jax.models.detection.rcnn import RCNN
from resnest_jax.models.detection.roi_heads import CONVOLUTIONS, stage_names
from resnest_jax.models.resnest import ResNeSt
from resnest_jax.weights.entries import COUNTER, Entry, below, classification_entries, layer, norm

BACKBONE = "backbone.bottom_up."
BOX_HEAD = "roi_heads.box_head."
PREDICTOR = "roi_heads.box_predictor."
MASK_HEAD = "roi_heads.mask_head."
ANCHORS = "cell_anchors"
CLASSES = f"{PREDICTOR}cls_score.bias"  # one more than classes; of a cascade one of each stage
# Fields of an ``RCNN``, and the entries that are as long; those of the heads once in each stage.
FIELDS = {
    "num_classes": rf"{PREDICTOR}(\d\.)?cls_score\.bias",
    "features": r"backbone\.fpn_lateral2\.weight",
    "hidden": rf"{BOX_HEAD}(\d\.)?fc1\.bias",
}
GENERATOR = "proposal_generator"
# Names in a block of a classifier, without its last shortcut, and here.
BLOCK = {f"bn{i}": f"conv{i}.norm" for i in (1, 2, 3)}
DEEP_STEM = {"bn1": "conv1_3.norm"}
DEEP_STEM |= {f"conv1.{3 * i - 3}": f"conv1_{i}" for i in (1, 2, 3)}
DEEP_STEM |= {f"conv1.{3 * i - 2}": f"conv1_{i}.norm" for i in (1, 2)}
STEM = {"conv1": "conv1", "bn1": "conv1.norm"}


def detection_entries(model: RCNN) -> Iterator[Entry]:
    """Yield the entries of a detector."""
    entries = [*_fpn(), *_backbone(model.backbone), *_rpn(model)]
    entries += [*_box_heads(model), *_mask_head(model)]
    if model.backbone.norm != "batch":  # frozen norms of detectron2 do not count
        entries = [entry for entry in entries if not entry.key.endswith(COUNTER)]
    return iter(entries)


def detectron_name(key: str, model: ResNeSt) -> str:
    """Return the name here of an entry of a backbone that is a classifier."""
    name, _, leaf = key.rpartition(".")
    if match := re.fullmatch(r"layer(\d)\.(\d+)\.(.+)", name):
        stage, block, part = match.groups()
        first = 1 if model.avg_down else 0  # the average pool of the shortcut has index 0
        shortcut = {
            f"downsample.{first}": "shortcut",
            f"downsample.{first + 1}": "shortcut.norm",
        }
        return f"res{int(stage) + 1}.{block}.{(BLOCK | shortcut).get(part, part)}.{leaf}"
    return f"stem.{(DEEP_STEM if model.deep_stem else STEM)[name]}.{leaf}"


def as_classifier(arrays: Mapping[str, np.ndarray], model: ResNeSt) -> dict[str, np.ndarray]:
    """Return the entries of a backbone under the names of a classifier; others keep theirs."""
    names = {detectron_name(key, model): key for key, _, _ in classification_entries(model)}
    return {names.get(key, key): value for key, value in arrays.items()}


def count_stages(arrays: Mapping[str, np.ndarray]) -> int:
    """Return the stages of box heads that a state dictionary has."""
    return len(_matching(FIELDS["num_classes"], arrays))


def fields_of(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return the fields of an ``RCNN`` that the lengths of entries of a state dictionary show."""
    found = {field: _matching(pattern, arrays) for field, pattern in FIELDS.items()}
    fields = {field: len(np.atleast_1d(found[field][0])) for field in found if found[field]}
    if "num_classes" in fields:
        fields["num_classes"] = max(1, fields["num_classes"] - 1)  # without the background
    if convolutions := len(_matching(rf"{MASK_HEAD}mask_fcn\d+\.weight", arrays)):
        fields["mask_convolutions"] = convolutions
    return fields


def _matching(pattern: str, arrays: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    return [array for key, array in arrays.items() if re.fullmatch(pattern, key)]


def anchors_of(arrays: Mapping[str, np.ndarray]) -> dict[str, tuple[float, ...]]:
    """Return ``anchor_sizes`` and ``anchor_ratios`` of a state dictionary, if it has anchors."""
    keys = [key for key in arrays if key.startswith(f"{GENERATOR}.anchor_generator.{ANCHORS}.")]
    levels = [np.asarray(arrays[key]) for key in sorted(keys)]
    if not levels or any(level.ndim != 2 or level.shape[1] != 4 for level in levels):
        return {}
    widths, heights = zip(*((level[:, 2:] - level[:, :2]).T for level in levels), strict=True)
    sizes = [np.sqrt(w[0] * h[0]) for w, h in zip(widths, heights, strict=True)]
    return {"anchor_sizes": _rounded(sizes), "anchor_ratios": _rounded(heights[0] / widths[0])}


def _rounded(values: Any) -> tuple[float, ...]:
    """Return float32 numbers without the digits that are rounding."""
    return tuple(float(f"{value:.6g}") for value in values)


def _fpn() -> Iterator[Entry]:
    for level in LEVELS:
        for kind in ("lateral", "output"):
            yield from layer(f"backbone.fpn_{kind}{level}", ("fpn", f"{kind}_conv{level}"))
            yield from norm(f"backbone.fpn_{kind}{level}.norm", ("fpn", f"{kind}_bn{level}"))


def _backbone(model: ResNeSt) -> Iterator[Entry]:
    """Yield the entries of the backbone, each block with its shortcut first."""
    stages = range(1, model.frozen_stages + 1)
    frozen = ("stem.", *(f"res{stage + 1}." for stage in stages)) if stages else ()
    entries = [
        below("backbone", entry)._replace(key=detectron_name(entry.key, model))
        for entry in classification_entries(model)
    ]
    for _, block in groupby(entries, lambda entry: entry.key.split(".")[:2]):
        for entry in sorted(block, key=lambda entry: ".shortcut." not in entry.key):
            if not (entry.key.startswith(frozen) and entry.key.endswith(COUNTER)):
                yield entry._replace(key=BACKBONE + entry.key)


def _rpn(model: RCNN) -> Iterator[Entry]:
    for i, size in enumerate(model.anchor_sizes):
        of_cell = np.asarray(anchors((1, 1), 1, size, model.anchor_ratios))
        yield Entry(f"{GENERATOR}.anchor_generator.{ANCHORS}.{i}", None, of_cell)
    names = {"conv": "conv", "objectness_logits": "objectness", "anchor_deltas": "deltas"}
    for torch_name, name in names.items():
        yield from layer(f"{GENERATOR}.rpn_head.{torch_name}", ("rpn", name), bias=True)


def _box_heads(model: RCNN) -> Iterator[Entry]:
    stages = stage_names(model.cascade_thresholds)
    for stage in stages:
        head, ours = f"{BOX_HEAD}{_index(stage)}", f"box_head{stage}"
        for i in range(1, CONVOLUTIONS + 1):
            yield from layer(f"{head}conv{i}", (ours, f"conv{i}"))
            yield from norm(f"{head}conv{i}.norm", (ours, f"bn{i}"))
        yield from layer(f"{head}fc1", (ours, "fc"), bias=True)
    for stage in stages:
        for name in ("cls_score", "bbox_pred"):
            path = (f"box_predictor{stage}", name)
            yield from layer(f"{PREDICTOR}{_index(stage)}{name}", path, bias=True)


def _index(stage: str) -> str:
    """Return what the authors' names have for the stage of a cascade."""
    return stage and f"{stage}."


def _mask_head(model: RCNN) -> Iterator[Entry]:
    for i in range(1, model.mask_convolutions + 1):
        yield from layer(f"{MASK_HEAD}mask_fcn{i}", ("mask_head", f"conv{i}"))
        yield from norm(f"{MASK_HEAD}mask_fcn{i}.norm", ("mask_head", f"bn{i}"))
    if model.mask_convolutions:
        yield from layer(f"{MASK_HEAD}deconv", ("mask_head", "deconv"), bias=True)
        yield from layer(f"{MASK_HEAD}predictor", ("mask_predictor",), bias=True)
