"""Detect objects in views of several sizes, mirrored too: the authors' test-time augmentation.

A view is made from the image as it is; their command makes it from the resized image of the test.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from resnest_jax.compiling import compiler_options
from resnest_jax.models.detection.detections import Detections, Instances
from resnest_jax.models.detection.rcnn import RCNN, Pyramid
from resnest_jax.models.detection.views import mirror, to_image, to_view, unite
from resnest_jax.models.inputs import normalize_padded
from resnest_jax.tasks.detection.canvases import Canvases
from resnest_jax.tasks.detection.transforms import EvalTransform
from resnest_jax.training.mesh import batch_sharding, platform_of, replicated, shard
from resnest_jax.training.task import HostBatch, Variables


@dataclasses.dataclass(frozen=True)
class ViewsTransform(grain.transforms.Map):
    """Resize a decoded record to several sizes, and pad each to its canvas.

    ``{"image": uint8 (H, W, 3), "index"}`` ->

    - ``image0``, ``image1``, ...: uint8 (h, w, 3), of each of ``canvases``;
    - ``size0``, ``size1``, ...: int32 (2,), height and width of the image in it;
    - ``size``, ``original_size``: int32 (2,), height and width of the record's image, of which the
      boxes are;
    - ``index``: int32 (), of the record.
    """

    canvases: tuple[Canvases, ...]

    def map(self, element: dict[str, Any]) -> dict[str, np.ndarray]:
        bare = element | {"boxes": np.zeros((0, 4)), "classes": np.zeros(0)}
        made: dict[str, np.ndarray] = {}
        for i, canvases in enumerate(self.canvases):
            view = EvalTransform(canvases, max_objects=1).map(bare)
            made |= {f"image{i}": view["image"], f"size{i}": view["size"]}
            made |= {"original_size": view["original_size"], "index": view["index"]}
        return made | {"size": made["original_size"]}


def make_detect(
    model: RCNN, variables: Variables, flip: bool, mesh: Mesh
) -> Callable[[HostBatch], Detections | Instances]:
    """Make ``detect(batch)`` of elements of ``ViewsTransform``; it compiles for each canvas.

    The result is sharded over the mesh as the batch is; boxes are in pixels of the original images.
    For masks the pyramids of all views of a batch are in memory: 1.4 GiB for a photograph of 4:3,
    256 channels and the default sizes.

    Args:
      model: its limits of detections hold for each view, and again for all views together.
      flip: whether each view is mirrored too.
      mesh: devices of all processes, or of this one.
    """
    options = compiler_options(platform_of(mesh))
    jit = partial(jax.jit, out_shardings=batch_sharding(mesh), compiler_options=options)
    network, variables = _Network(model), jax.device_put(variables, replicated(mesh))
    detect_in, masks_in = jit(network.detect), jit(network.masks)
    unite_all, join_masks = jit(network.unite), jit(_join)
    last = None

    def detect(batch: HostBatch) -> Detections | Instances:
        nonlocal last
        jax.block_until_ready(last)  # else the pyramids of two batches would be in memory
        arrays = shard(batch, mesh)
        original = arrays["original_size"]
        views = [
            _View(arrays[f"image{i}"], arrays[f"size{i}"], original, mirrored)
            for i in range(sum(name.startswith("image") for name in batch))
            for mirrored in ((False, True) if flip else (False,))
        ]
        pyramids, found = zip(*(detect_in(variables, view) for view in views), strict=True)
        last = unite_all(found)
        if model.mask_convolutions:
            each = zip(views, pyramids, strict=True)
            last = join_masks(last, [masks_in(variables, *pair, last) for pair in each])
        return last

    return detect


class _View(NamedTuple):
    """A view of each image of a batch.

    Attributes:
      images: (B, H, W, 3) uint8, padded right and below, not mirrored yet.
      sizes: (B, 2), heights and widths without padding.
      original: (B, 2), those of the images.
      mirrored: bool (), whether it is.
    """

    images: jax.Array
    sizes: jax.Array
    original: jax.Array
    mirrored: jax.Array | bool


class _Network(NamedTuple):
    """A model, applied to views."""

    model: RCNN

    def detect(self, variables: Variables, view: _View) -> tuple[Pyramid, Detections]:
        """Return the pyramids, if the model has masks, and the detections in the images."""

        def parts(model: RCNN, images: jax.Array) -> tuple[Pyramid, Detections]:
            pyramid = model.pyramid(images)
            return pyramid if model.mask_convolutions else {}, model.boxes(pyramid, view.sizes)

        images = jnp.where(view.mirrored, jax.vmap(mirror)(*view[:2]), view.images)
        inputs = normalize_padded(images, view.sizes)
        pyramid, found = cast(tuple, self.model.apply(variables, inputs, method=parts))
        return pyramid, jax.vmap(to_image, (0, 0, 0, None))(found, *view[1:])

    def unite(self, found: Sequence[Detections]) -> Detections:
        """Return the detections of the images, from those in all views."""
        model = self.model
        together = jax.tree.map(lambda *parts: jnp.concatenate(parts, 1), *found)
        limits = {"num": model.detections, "threshold": model.detection_nms}
        return jax.vmap(partial(unite, **limits))(together)

    def masks(
        self, variables: Variables, view: _View, pyramid: Pyramid, found: Detections
    ) -> jax.Array:
        """Return the masks (B, D, 28, 28) of detections in the images, as they are in a view."""
        boxes = jax.vmap(to_view, (0, 0, 0, None))(
            found.boxes, view.original, view.sizes, view.mirrored
        )
        masks = cast(
            jax.Array, self.model.apply(variables, pyramid, boxes, found.classes, method="masks")
        )
        return jnp.where(view.mirrored, masks[..., ::-1], masks)


def _join(found: Detections, masks: Sequence[jax.Array]) -> Instances:
    """Return detections with the mean of the masks of all views."""
    mean = jnp.mean(jnp.stack(masks), 0)
    return Instances(*found, jnp.where(found.valid[..., None, None], mean, 0))
