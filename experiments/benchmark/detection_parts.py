"""Our programs of the parts of Faster R-CNN, each on what the parts before it return."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from experiments.benchmark.ours import Program, compile_program
from resnest_jax.models.detection.boxes import decode
from resnest_jax.models.detection.rcnn import RCNN
from resnest_jax.models.detection.roi_heads import box_weights
from resnest_jax.models.detection.rpn import RPNOutput
from resnest_jax.models.detection.targets import Objects

OURS = "ours"


def programs(
    model: RCNN, variables: dict, inputs: tuple, train: bool
) -> dict[tuple[str, str], Program]:
    """Return (part, "ours") -> program: forward, in training with the gradients that it needs.

    These are of the parameters and of feature maps.

    Args:
      inputs: images (B, H, W, 3), sizes, boxes, classes and ``valid``, see ``RCNN.losses``.
    """
    images, sizes, *objects = inputs
    made = {}

    def add(name: str, modules: tuple, method: Callable, *arrays, maps=None, gradient=train) -> Any:
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

    def proposals_of(model: RCNN, output: RPNOutput, sizes: jax.Array):
        kind = "train" if train else "test"
        numbers = (getattr(model, f"{kind}_{what}") for what in ("candidates", "proposals"))
        return model.rpn.select(output, sizes, *numbers)

    proposals = add("proposals, NMS", (), proposals_of, output, sizes, gradient=False)
    boxes = proposals.boxes
    if train:
        rest = (Objects(*objects), jax.random.split(jax.random.key(0), len(images)))

        def losses_of(model: RCNN, maps: tuple, *rest: Any):
            return model.rpn.losses(RPNOutput(*maps, output.anchors), *rest)

        add("RPN losses", (), losses_of, *rest, maps=output[:2])

        def regions_of(model: RCNN, *arrays: Any):
            return model.sample(*arrays)

        boxes = add("regions", (), regions_of, proposals, *rest, gradient=False).boxes
    pooled = add("RoIAlign", (), lambda model, x, boxes: model.pool(x, boxes), boxes, maps=pyramid)

    def heads_of(model: RCNN, pooled: jax.Array) -> tuple[jax.Array, jax.Array]:
        return model.predict(pooled, train=train)

    outputs = add("heads", ("box_head", "box_predictor"), heads_of, maps=pooled)
    if not train:

        def detections_of(model: RCNN, proposals, logits, deltas, sizes):
            refined = decode(proposals.boxes[:, :, None], deltas, box_weights(0))
            return model.select(refined, nn.softmax(logits), proposals.valid, sizes)

        add("detections, NMS", (), detections_of, proposals, *outputs, sizes)
    return made


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
