"""Class activation maps and attention to the splits, as numbers and as a picture."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.figure
import numpy as np
from matplotlib.axes import Axes

from resnest_jax.files import writing
from resnest_jax.models.inputs import normalize
from resnest_jax.models.resnest import ResNeSt, stage_of

ROW_INCHES = 2.4
DPI = 100


class Explanation(NamedTuple):
    """Result of ``explain`` for a batch or, without the leading axis, for one image.

    Attributes:
      probabilities: (B, num_classes).
      cam: (B, H / 32, W / 32), not negative: evidence for the top class, in logits.
      attention: (B, 4, radix), weight of each split, mean over channels and blocks of a stage;
        None without split attention.
      spread: (B, 4, radix), standard deviation over channels and blocks, or None.
    """

    probabilities: jax.Array
    cam: jax.Array
    attention: jax.Array | None
    spread: jax.Array | None


@partial(jax.jit, static_argnums=0)
def explain(model: ResNeSt, variables: dict[str, Any], images: jax.Array) -> Explanation:
    """Compute probabilities, Grad-CAM of the top class and attention in one forward pass.

    Grad-CAM (Selvaraju et al., arXiv 1610.02391) at ``c5`` needs no backward pass here: before
    global average pooling and one dense layer, the gradient of logit k with respect to ``c5`` is
    ``kernel[:, k] / (H * W)`` everywhere. This is the class activation map (arXiv 1512.04150).

    Args:
      images: RGB (B, H, W, 3) in 0..255, of any dtype.
    """
    endpoints, sown = model.apply(
        variables, normalize(images), method="features", mutable=["intermediates"]
    )
    c5 = endpoints["c5"].astype(jnp.float32)
    head = variables["params"]["head"]
    dense = nn.Dense(model.num_classes)
    logits = cast(jax.Array, dense.apply({"params": head}, jnp.mean(c5, (1, 2))))
    gradient = head["kernel"].T[jnp.argmax(logits, -1)] / (c5.shape[1] * c5.shape[2])
    cam = nn.relu(jnp.einsum("bhwc,bc->bhw", c5, gradient))
    return Explanation(nn.softmax(logits), cam, *_attention(sown))


def _attention(sown: Any) -> tuple[jax.Array | None, jax.Array | None]:
    """Return mean and standard deviation (B, 4, radix) of each stage's sown attention."""
    stages: dict[int, list[jax.Array]] = {}
    for block, layers in sown.get("intermediates", {}).items():
        stages.setdefault(stage_of(block), []).extend(layers["conv2"]["attention"])
    if not stages:
        return None, None
    # Blocks of a stage have equal widths, so joining their channels weights them equally.
    joined = [jnp.concatenate(stages[stage], -1) for stage in sorted(stages)]
    mean, std = (jnp.stack([f(x, -1) for x in joined], 1) for f in (jnp.mean, jnp.std))
    return mean, std


def draw(
    path: Path,
    titles: Sequence[str],
    images: Sequence[np.ndarray],
    explanations: Sequence[Explanation],
    class_names: Sequence[str],
) -> None:
    """Write a PNG with one row per image: the image, the map over it, the attention per stage.

    Args:
      images: uint8 (H, W, 3) each, inputs of the network; at least one.
      explanations: of single images, without the leading axis.

    Raises:
      InputError: if the file cannot be written.
    """
    stages = 0 if explanations[0].attention is None else len(explanations[0].attention)
    widths = [1, 1] + [0.62] * stages
    # Not pyplot, which has global state and opens windows.
    figure = matplotlib.figure.Figure(
        figsize=(ROW_INCHES * sum(widths), ROW_INCHES * len(images)), layout="constrained"
    )
    grid = figure.subplots(len(images), len(widths), squeeze=False, width_ratios=widths)
    rows = zip(grid, titles, images, explanations, strict=True)
    for row, (axes, title, image, explanation) in enumerate(rows):
        top = int(np.argmax(explanation.probabilities))
        label = f"{class_names[top]} {100 * explanation.probabilities[top]:.1f} %"
        _draw_image(axes[0], image, title)
        if explanation.cam.size > 1:
            _draw_image(axes[1], image, label)
            _draw_map(axes[1], np.asarray(explanation.cam))
        else:  # one value for the whole image says nothing about places
            _draw_image(axes[1], image, f"{label}\n(too small for a map)")
        for stage in range(stages):
            _draw_attention(axes[2 + stage], explanation, stage)
            if row == 0:
                axes[2 + stage].set_title(f"stage {stage + 1}", fontsize=9)
        if stages:
            axes[2].set_ylabel("attention to each split", fontsize=8)
    with writing("explain", path):
        figure.savefig(path, dpi=DPI, format="png")


def _draw_image(axes: Axes, image: np.ndarray, title: str) -> None:
    title = title if len(title) <= 32 else f"{title[:31]}…"
    # Do not parse $ as math.
    axes.set_title(title, fontsize=9, parse_math=False)
    height, width = image.shape[:2]
    # The last three are for grey images.
    axes.imshow(image, extent=(0, width, height, 0), cmap="gray", vmin=0, vmax=255)
    axes.set_axis_off()


def _draw_map(axes: Axes, cam: np.ndarray) -> None:
    """Draw the map over the image; weaker evidence is more transparent."""
    strength = cam / max(cam.max(), np.finfo(np.float32).tiny)
    axes.imshow(
        strength,
        extent=(*axes.get_xlim(), *axes.get_ylim()),
        cmap="turbo",
        vmin=0,
        vmax=1,
        alpha=0.65 * strength,
        interpolation="bicubic",
    )


def _draw_attention(axes: Axes, explanation: Explanation, stage: int) -> None:
    """Draw one bar per split, with the standard deviation over channels and blocks."""
    mean = np.asarray(explanation.attention)[stage]
    spread = np.asarray(explanation.spread)[stage]
    splits = np.arange(1, len(mean) + 1)
    colors = [f"C{split % 10}" for split in splits - 1]
    error_bars = {"ecolor": "0.3", "capsize": 3, "error_kw": {"elinewidth": 1}}
    axes.bar(splits, mean, yerr=spread, color=colors, **error_bars)
    if len(mean) > 1:  # weights of several splits sum to 1; that of one split is a sigmoid
        axes.axhline(1 / len(mean), color="0.3", linewidth=0.8, linestyle=":")
    axes.set(ylim=(0, 1), xlim=(0.3, len(mean) + 0.7), xticks=splits)
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)
