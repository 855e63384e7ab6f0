"""Region proposal network (arXiv 1506.01497)."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from resnest_jax.models.detection import anchors
from resnest_jax.models.detection.losses import rpn_losses
from resnest_jax.models.detection.proposals import Proposals, select_proposals
from resnest_jax.models.detection.targets import Objects, sample_anchors
from resnest_jax.models.layers.activation import relu
from resnest_jax.models.layers.convolution import Conv

# As the authors', for all layers of the RPN and of the predictor's classes.
normal_init = nn.initializers.normal(0.01)


class RPNOutput(NamedTuple):
    """Of each level with A anchors: the outputs of the network for B images, and the anchors.

    Attributes:
      logits: (B, A), float32 at least.
      deltas: (B, A, 4), float32 at least.
      anchors: (A, 4).
    """

    logits: list[jax.Array]
    deltas: list[jax.Array]
    anchors: list[jax.Array]


class RPN(nn.Module):
    """Region proposal network: a 3x3 convolution and ReLU, and a 1x1 for objectness and for boxes.

    Call with the maps of the pyramid, (B, H, W, C) each, p2 first; all have the same layers.

    Attributes:
      sizes, ratios, thresholds, samples, positives, nms: see ``RCNN``: ``anchor_sizes``,
        ``anchor_ratios``, ``rpn_thresholds``, ``rpn_samples``, ``rpn_positives``, ``proposal_nms``.
      conv: factory of convolutions.
    """

    sizes: tuple[float, ...] = anchors.SIZES
    ratios: tuple[float, ...] = anchors.RATIOS
    thresholds: tuple[float, float] = (0.3, 0.7)
    samples: int = 256
    positives: float = 0.5
    nms: float = 0.7
    conv: Callable[..., nn.Module] = Conv

    @nn.compact
    def __call__(self, pyramid: Mapping[str, jax.Array]) -> RPNOutput:
        conv = partial(
            self.conv, use_bias=True, kernel_init=normal_init, bias_init=nn.initializers.zeros
        )
        hidden = conv(pyramid["p2"].shape[-1], kernel_size=3, name="conv")
        objectness = conv(len(self.ratios), name="objectness")
        deltas = conv(4 * len(self.ratios), name="deltas")
        output = RPNOutput([], [], [])
        for map, stride, size in zip(pyramid.values(), anchors.STRIDES, self.sizes, strict=True):
            images, height, width, _ = map.shape
            wide = jnp.promote_types(map.dtype, jnp.float32)
            x = relu(hidden(map))
            output.logits.append(objectness(x).reshape(images, -1).astype(wide))
            output.deltas.append(deltas(x).reshape(images, -1, 4).astype(wide))
            output.anchors.append(anchors.anchors((height, width), stride, size, self.ratios))
        return output

    def select(self, output: RPNOutput, sizes: jax.Array, num_before: int, num: int) -> Proposals:
        """Return the proposals (B, num) of images of ``sizes`` (B, 2), see ``select_proposals``."""
        settings = {"num_before": num_before, "num": num, "threshold": self.nms}

        def of_image(
            logits: list[jax.Array], deltas: list[jax.Array], size: jax.Array
        ) -> Proposals:
            return select_proposals(logits, deltas, output.anchors, size, **settings)

        return jax.vmap(of_image)(output.logits, output.deltas, sizes)

    def losses(
        self, output: RPNOutput, objects: Objects, keys: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """Return the losses of objectness and of boxes, see ``rpn_losses``.

        Args:
          objects: of each image, (B, G).
          keys: (B,), of the samples; None takes the first anchors.
        """
        every = jnp.concatenate(output.anchors)
        low, high = self.thresholds
        rule = {"num": self.samples, "fraction": self.positives, "low": low, "high": high}

        def of_image(
            logits: jax.Array, deltas: jax.Array, objects: Objects, key: jax.Array | None
        ) -> tuple[jax.Array, jax.Array]:
            drawn, targets = sample_anchors(every, objects, **rule, key=key)
            return rpn_losses(logits, deltas, every, drawn, targets, num=self.samples)

        logits, deltas = (jnp.concatenate(parts, 1) for parts in (output.logits, output.deltas))
        objectness, of_boxes = jax.vmap(of_image)(logits, deltas, objects, keys)
        return jnp.mean(objectness), jnp.mean(of_boxes)
