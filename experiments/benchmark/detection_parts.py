"""Our programs of the parts of a detector, each on what the parts before it return."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmark.ours import Program, compile_program
from resnest_jax.data.geometry import Size
from resnest_jax.data.instances import paste_mask
from resnest_jax.models.detection import roi_heads
from resnest_jax.models.detection.boxes import clip, decode
from resnest_jax.models.detection.detections import Detections, Instances
from resnest_jax.models.detection.masks import mask_targets
from resnest_jax.models.detection.proposals import Proposals
from resnest_jax.models.detection.rcnn import POOLED_FOR_MASK, RCNN, Pyramid
from resnest_jax.models.detection.rpn import RPNOutput
from resnest_jax.models.detection.targets import Objects, Regions, match_regions
from resnest_jax.tasks.detection.metrics import to_original

OURS = "ours"
WHOLE = "whole network"

Part = Callable[..., Any]


def programs(
    model: RCNN, variables: dict, inputs: tuple, photo: Size, train: bool
) -> dict[tuple[str, str], Program]:
    """Return (part, "ours") -> program: forward, in training with the gradients that it needs.

    These are of the parameters and of feature maps. Without ``train`` there is the whole network
    too, which has all other parts but ``pasting masks``.

    Args:
      inputs: the arguments of ``RCNN.losses``.
      photo: height and width of the photos before resizing, which masks are pasted into.
    """
    images, sizes, *objects, _, _, masks = inputs
    made = {}

    def add(name: str, modules: tuple, method: Part, *arrays, maps=None, gradient=train) -> Any:
        """Add the program of a part; return its result."""
        used = {
            kind: {name: tree[name] for name in modules if name in tree}
            for kind, tree in variables.items()
        }
        forward = _forward(model, method)
        program = compile_program(_both(forward) if gradient else forward, used, maps, *arrays)
        made[name, OURS] = program
        return program.call()[0] if gradient else program.call()

    def endpoints_of(model: RCNN, images: jax.Array) -> dict[str, jax.Array]:
        endpoints = model.backbone.features(images, train)
        return {name: x for name, x in endpoints.items() if name != "c1"}

    endpoints = add("backbone", ("backbone",), endpoints_of, images)
    pyramid = add("FPN", ("fpn",), lambda model, x: model.fpn(x, train), maps=endpoints)
    output = add("RPN", ("rpn",), lambda model, x: model.rpn(x), maps=pyramid)

    def proposals_of(model: RCNN, output: RPNOutput, sizes: jax.Array) -> Proposals:
        kind = "train" if train else "test"
        numbers = (getattr(model, f"{kind}_{what}") for what in ("candidates", "proposals"))
        return model.rpn.select(output, sizes, *numbers)

    proposals = add("proposals, NMS", (), proposals_of, output, sizes, gradient=False)
    if train:
        _add_training(add, model, (sizes, Objects(*objects), masks), pyramid, output, proposals)
        return made
    found = _add_inference(add, model, sizes, pyramid, proposals)
    if isinstance(found, Instances):
        arrays = jax.tree.map(np.asarray, (found, sizes))
        made["pasting masks", OURS] = Program(partial(_paste, *arrays, photo))
    made[WHOLE, OURS] = compile_program(model.apply, variables, images, sizes)
    return made


def names_of_stages(cascade_thresholds: Sequence[float]) -> list[str]:
    """Return the ends of the names of the parts that each stage has."""
    numbers = roi_heads.stage_names(tuple(cascade_thresholds))
    return [number and f", stage {number}" for number in numbers]


def _add_inference(
    add: Part, model: RCNN, sizes: jax.Array, pyramid: Pyramid, proposals: Proposals
) -> Detections | Instances:
    """Add the parts after the proposals; return the detections."""
    boxes, outputs = proposals.boxes, []
    for stage in range(1 + len(model.cascade_thresholds)):
        if stage:
            boxes = _refined(boxes, outputs[-1][1], stage)
            boxes = jax.vmap(clip)(boxes, sizes)
        outputs.append(_add_stage(add, model, stage, pyramid, boxes))

    def detections_of(model: RCNN, boxes, valid, outputs, sizes) -> Detections:
        weights = roi_heads.box_weights(len(outputs) - 1)
        refined = decode(boxes[:, :, None], outputs[-1][1], weights)
        probabilities = [nn.softmax(logits) for logits, _ in outputs]
        return model.select(refined, jnp.mean(jnp.stack(probabilities), 0), valid, sizes)

    arrays = (boxes, proposals.valid, outputs, sizes)
    found = add("detections, NMS", (), detections_of, *arrays)
    if not model.mask_convolutions:
        return found
    return Instances(*found, _add_mask_head(add, pyramid, found.boxes, found.classes))


def _add_training(
    add: Part,
    model: RCNN,
    truth: tuple[jax.Array, Objects, jax.Array | None],
    pyramid: Pyramid,
    output: RPNOutput,
    proposals: Proposals,
) -> None:
    """Add the parts after the proposals; the truth is sizes of images, objects and masks."""
    sizes, objects, masks = truth
    keys = jax.random.split(jax.random.key(0), len(sizes))

    def losses_of(model: RCNN, maps: tuple, *rest: Any) -> tuple:
        return model.rpn.losses(RPNOutput(*maps, output.anchors), *rest)

    add("RPN losses", (), losses_of, objects, keys, maps=output[:2])
    names = names_of_stages(model.cascade_thresholds)

    def regions_of(model: RCNN, *arrays: Any) -> Regions:
        return model.sample(*arrays)

    arrays = (proposals, objects, keys)
    first = regions = add(f"regions{names[0]}", (), regions_of, *arrays, gradient=False)
    _, deltas = _add_stage(add, model, 0, pyramid, regions.boxes, True, regions.valid)
    for stage, threshold in enumerate(model.cascade_thresholds, 1):

        def matched_of(model: RCNN, regions, deltas, objects, sizes, rule=(stage, threshold)):
            boxes = _refined(regions.boxes, deltas, rule[0])
            match = partial(match_regions, threshold=rule[1], num_classes=model.num_classes)
            return jax.vmap(match)(boxes, regions.valid, objects, sizes)

        arrays = (regions, deltas, objects, sizes)
        regions = add(f"regions{names[stage]}", (), matched_of, *arrays, gradient=False)
        _, deltas = _add_stage(add, model, stage, pyramid, regions.boxes, True, regions.valid)
    if masks is not None:
        _add_mask_training(add, model, sizes, masks, pyramid, first)


def _add_stage(
    add: Part, model: RCNN, stage: int, pyramid: Pyramid, boxes: jax.Array, *training: Any
) -> tuple[jax.Array, jax.Array]:
    """Add RoIAlign and heads; ``training`` is True and the valid regions, or nothing."""
    name = names_of_stages(model.cascade_thresholds)[stage]
    number = roi_heads.stage_names(model.cascade_thresholds)[stage]
    train, valid = training or (False, None)
    pooled = add(f"RoIAlign{name}", (), lambda m, x, boxes: m.pool(x, boxes), boxes, maps=pyramid)

    def heads_of(model: RCNN, pooled: jax.Array, valid: Any) -> tuple[jax.Array, jax.Array]:
        return model.predict(pooled, stage, train, valid)

    modules = (f"box_head{number}", f"box_predictor{number}")
    return add(f"heads{name}", modules, heads_of, valid, maps=pooled)


def _add_mask_head(
    add: Part, pyramid: Pyramid, boxes: jax.Array, classes: jax.Array, *training: Any
) -> jax.Array:
    """Add RoIAlign and mask head, see ``_add_stage``; return the probabilities (B, R, 28, 28)."""
    train, valid = training or (False, None)

    def pooled_of(model: RCNN, pyramid: Pyramid, boxes: jax.Array) -> jax.Array:
        return model.pool(pyramid, boxes, POOLED_FOR_MASK)

    def masks_of(model: RCNN, pooled: jax.Array, *arrays: Any) -> jax.Array:
        x, classes, valid = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), (pooled, *arrays))
        logits = model.mask_predictor(model.mask_head(x, train, valid), classes)
        return nn.sigmoid(logits).reshape(*pooled.shape[:2], *logits.shape[1:])

    pooled = add("RoIAlign of masks", (), pooled_of, boxes, maps=pyramid)
    modules = ("mask_head", "mask_predictor")
    return add("mask head", modules, masks_of, classes, valid, maps=pooled)


def _add_mask_training(
    add: Part,
    model: RCNN,
    sizes: jax.Array,
    masks: jax.Array,
    pyramid: Pyramid,
    regions: Regions,
) -> None:
    """Add the parts of the masks of the foreground, which is the first of the regions."""
    most = max(1, int(model.roi_samples * model.roi_positives))
    boxes, classes, objects, _, valid = (x[:, :most] for x in regions)
    valid = valid & (classes < model.num_classes)

    def targets_of(model: RCNN, *arrays: Any) -> jax.Array:
        return jax.vmap(partial(mask_targets, cells=2 * POOLED_FOR_MASK))(*arrays)

    add("mask targets", (), targets_of, masks, sizes, boxes, objects, gradient=False)
    _add_mask_head(add, pyramid, boxes, jnp.where(valid, classes, 0), True, valid)


def _refined(boxes: jax.Array, deltas: jax.Array, stage: int) -> jax.Array:
    """Return the boxes (B, R, 4) of a stage of a cascade, from the outputs of the one before."""
    return decode(boxes, deltas[:, :, 0], roi_heads.box_weights(stage - 1))


def _paste(found: Instances, sizes: np.ndarray, photo: Size) -> list[np.ndarray]:
    """Return the masks of the detections in the photos."""
    pasted = []
    for boxes, _, _, valid, masks, size in zip(*found, sizes, strict=True):
        boxes = to_original(boxes[valid], size, np.array(photo))
        for mask, box in zip(masks[valid], boxes, strict=True):
            pasted.append(paste_mask(mask, box, photo))
    return pasted


def _forward(model: RCNN, method: Callable) -> Callable:
    """Make a function of variables, feature maps or None, and other arrays."""

    def forward(variables: dict, maps: Any, *arrays: Any) -> Any:
        inputs = arrays if maps is None else (maps, *arrays)
        return model.apply(variables, *inputs, method=method, mutable=["batch_stats"])[0]

    return forward


def _both(forward: Callable) -> Callable:
    """Make a function that returns the result too, and gradients of the parameters and maps."""

    def both(variables: dict, maps: Any, *arrays: Any) -> tuple:
        def of_params(params: dict, maps: Any) -> Any:
            return forward(variables | {"params": params}, maps, *arrays)

        y, pullback = jax.vjp(of_params, variables["params"], maps)
        return y, pullback(y)

    return both
