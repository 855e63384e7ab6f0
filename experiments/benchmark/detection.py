"""Our programs of a detector, and PyTorch's of the same network with the same weights."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from experiments.benchmark import detection_parts, ours, torch_process
from experiments.timing import random_variables
from resnest_jax.config import default_config
from resnest_jax.data.geometry import Size, short_side
from resnest_jax.data.instances import pack_masks
from resnest_jax.data.sources.coco_boxes import GroundTruth
from resnest_jax.models.detection.anchors import STRIDES, anchors
from resnest_jax.models.detection.rcnn import RCNN
from resnest_jax.models.inputs import normalize_padded
from resnest_jax.models.zoo import create_model
from resnest_jax.tasks.backbone import frozen
from resnest_jax.tasks.detection.canvases import make_canvases
from resnest_jax.tasks.detection.task import Detection
from resnest_jax.training.task import Batch
from resnest_jax.weights.detectron import ANCHORS, BACKBONE
from resnest_jax.weights.torch_names import to_torch

PHOTO = (480, 640)  # height and width before resizing, as of most photos of COCO
LONGEST = 2  # the limit of the longer side, in shorter sides
OBJECTS = 7  # per image, as in COCO
# Overlap of foreground. Random proposals are not where the objects are: with the authors' 0.5, 3 %
# of the regions would be foreground, all that PyTorch's mask head looks at; with this a fifth is.
ROI_THRESHOLD = 0.12
# Random layers of a scale with which proposals stay near their anchors and scores differ.
SCALES = {"deltas": 0.02, "cls_score": 1.5}


def make_model(backbone: str, dtype: str, detector: str) -> RCNN:
    """Return the network of the recipes, but for ``ROI_THRESHOLD``."""
    fields = {"backbone": backbone, "roi_threshold": ROI_THRESHOLD, "dtype": jnp.dtype(dtype)}
    return create_model(detector, **fields)


def canvas(side: int) -> Size:
    """Return the canvas of photos with this shorter side; print how many a run has."""
    sizes = make_canvases(np.array([PHOTO, PHOTO[::-1]]), side, LONGEST * side).sizes
    print(f"wide and high photos need {len(sizes)} canvases {sizes}; a training and a test step of")
    print("each are compiled in a run; here those of the first")
    return sizes[0]


def make_batch(model: RCNN, shape: tuple[int, ...], side: int) -> Batch:
    """Return random images (B, H, W, 3) on the canvas and objects, see ``Detection.loss``.

    With a mask head there are ``masks`` too, see ``RCNN.losses``: the ellipses in the boxes.
    """
    rng = np.random.default_rng(0)
    count, most = shape[0], default_config("detection").data.max_objects
    height, width = short_side(PHOTO, side, LONGEST * side)
    image = np.zeros(shape, np.uint8)
    image[:, :height, :width] = rng.integers(0, 256, (count, height, width, 3))
    sides = np.array([width, height])
    boxes = np.zeros((count, most, 4), np.float32)
    extent = sides * rng.uniform(0.1, 0.6, (count, OBJECTS, 2))
    corner = (sides - extent) * rng.random((count, OBJECTS, 2))
    boxes[:, :OBJECTS] = np.concatenate((corner, corner + extent), -1)
    batch = {
        "image": image,
        "size": np.tile(np.array([[height, width]], np.int32), (count, 1)),
        "boxes": boxes,
        "classes": rng.integers(0, model.num_classes, (count, most), np.int32),
        "object_valid": np.tile(np.arange(most) < OBJECTS, (count, 1)),
    }
    if model.mask_convolutions:
        batch["masks"] = pack_masks(_ellipses(boxes, shape[1:3]))
    return jax.device_put(batch)


def _ellipses(boxes: np.ndarray, size: Size) -> np.ndarray:
    """Return the pixels (..., H, W) of the ellipses in boxes (..., 4), none in an empty one."""
    x0, y0, x1, y1 = np.moveaxis(boxes, -1, 0)[..., None]
    x, y = np.arange(size[1]) + 0.5, np.arange(size[0]) + 0.5
    columns, rows = (2 * x - x0 - x1) / (x1 - x0 + 1e-6), (2 * y - y0 - y1) / (y1 - y0 + 1e-6)
    return rows[..., :, None] ** 2 + columns[..., None, :] ** 2 <= 1


def loss_inputs(batch: Batch, images: jax.Array) -> tuple:
    """Return the arguments of ``RCNN.losses``, with normalised images and without a key."""
    objects = (batch[key] for key in ("size", "boxes", "classes", "object_valid"))
    return images, *objects, None, 1.0, batch.get("masks")


def programs(
    model: RCNN, batch: Batch, backbone: str, train: bool, parts: bool, torch: bool
) -> dict:
    """Return name -> program: ours, and those of PyTorch, whose results are compared with ours.

    With ``parts`` a name is a part and whose program it is, see ``detection_parts``.
    """
    images = jax.jit(normalize_padded)(batch["image"], batch["size"])
    variables = _variables(model, images)
    inputs = loss_inputs(batch, images)
    if parts:
        made = detection_parts.programs(model, variables, inputs, PHOTO, train)
    elif train:
        freeze = frozen(default_config("detection"))
        task = Detection(model, GroundTruth({}, (), ()))
        made = {"as trained": ours.train_step(task, batch, variables, freeze)}
    else:
        made = ours.inference(model, variables, *inputs[:2])
    if not torch:
        return made
    expected = (_losses if train else _detections)(model, variables, inputs)
    return made | torch_process.programs(
        "programs",
        "torch_detection",
        name=backbone,
        train=train,
        parts=parts,
        state=_state(model, variables),
        fields=_fields(model),
        anchors=_anchors(model, images.shape),
        inputs=jax.tree.map(np.asarray, inputs),
        photo=PHOTO,
        expected=jax.tree.map(np.asarray, expected),
    )


def _variables(model: RCNN, images: jax.Array) -> dict:
    variables = random_variables(model, images)
    params = {
        path: x * SCALES.get(path[-2], 1) if path[-1] == "kernel" else x
        for path, x in flatten_dict(variables["params"]).items()
    }
    return variables | {"params": unflatten_dict(params)}


def _detections(model: RCNN, variables: dict, inputs: tuple) -> dict[str, jax.Array]:
    return jax.jit(model.apply)(variables, *inputs[:2])._asdict()


def _losses(model: RCNN, variables: dict, inputs: tuple) -> dict[str, jax.Array]:
    """Return the losses of the first anchors and regions instead of random ones."""

    def losses(variables: dict, *inputs: Any) -> dict[str, jax.Array]:
        options = {"method": "losses", "mutable": ["batch_stats"]}
        return model.apply(variables, *inputs, **options)[0]

    return jax.jit(losses)(variables, *inputs)


def _state(model: RCNN, variables: dict) -> dict[str, np.ndarray]:
    """Return the weights by the authors' names, but those of the backbone by timm's."""
    of_backbone = {kind: tree["backbone"] for kind, tree in variables.items()}
    state = {
        key: value
        for key, value in to_torch(variables, model).items()
        if not key.startswith(BACKBONE) and ANCHORS not in key
    }
    named = to_torch(of_backbone, model.backbone)
    return state | {BACKBONE + key: value for key, value in named.items()}


def _fields(model: RCNN) -> dict:
    """Return the fields that are numbers or tuples of them."""
    fields = {field.name: getattr(model, field.name) for field in dataclasses.fields(model)}
    return {k: v for k, v in fields.items() if isinstance(v, int | float | tuple)}


def _anchors(model: RCNN, shape: tuple[int, ...]) -> list[np.ndarray]:
    found = []
    for stride, size in zip(STRIDES, model.anchor_sizes, strict=True):
        cells = (-(-shape[1] // stride), -(-shape[2] // stride))
        found.append(np.asarray(anchors(cells, stride, size, model.anchor_ratios)))
    return found
