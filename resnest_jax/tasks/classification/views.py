"""Test-time augmentation: several views of an image, whose probabilities are averaged."""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import grain
import jax
import jax.numpy as jnp
import numpy as np

from resnest_jax.data.crops import corner_crops, test_crop
from resnest_jax.errors import InputError
from resnest_jax.models.inputs import normalize
from resnest_jax.models.resnest import MIN_SIZE
from resnest_jax.tasks.classification.task import apply_model
from resnest_jax.tasks.classification.transforms import EvalTransform
from resnest_jax.training.task import Batch, Variables

TTA = ("flip", "five_crop")
_PREFIX = "views_"  # of the keys of a batch, one per size


@dataclasses.dataclass(frozen=True)
class Views(grain.transforms.Map):
    """Views of a decoded record: at every size the test crop, with those of ``tta``.

    ``{"image": uint8 (H, W, 3), "label"}`` ->
    ``{"views_SIZE": uint8 (views, SIZE, SIZE, 3) of each size, "label": int32 ()}``

    Attributes:
      sizes: sides in pixels.
      crop: one of the rules of ``crops.test_crop``.
      tta: ``five_crop`` adds crops at the four corners, ``flip`` every view mirrored.
    """

    sizes: tuple[int, ...]
    crop: str
    tta: tuple[str, ...] = ()

    def map(self, element: dict[str, Any]) -> dict[str, np.ndarray]:
        views = {f"{_PREFIX}{size}": self._views(element["image"], size) for size in self.sizes}
        return {**views, "label": np.array(element["label"], np.int32)}

    def _views(self, image: np.ndarray, size: int) -> np.ndarray:
        views = [test_crop(image, size, self.crop)]
        if "five_crop" in self.tta:
            views += corner_crops(image, size, self.crop)
        if "flip" in self.tta:
            views += [view[:, ::-1] for view in views]
        return np.stack(views)


def view_transform(
    sizes: tuple[int, ...], crop: str, tta: tuple[str, ...] = ()
) -> EvalTransform | Views:
    """Return the transform of test images; without augmentation the plain test crop.

    Raises:
      InputError: if an argument is out of range.
    """
    if not sizes or min(sizes) < MIN_SIZE or len(set(sizes)) < len(sizes):
        raise InputError(
            f"tta_sizes must be different sides of at least {MIN_SIZE} pixels; got {sizes}"
        )
    if not set(tta) <= set(TTA):
        raise InputError(f"tta must be some of {', '.join(TTA)}; got {', '.join(tta)}")
    plain = EvalTransform(sizes[0], crop)  # which checks the crop
    return Views(sizes, crop, tta) if tta or len(sizes) > 1 else plain


def view_logits(model: nn.Module, variables: Variables, batch: Batch) -> jax.Array:
    """Return logits (B, num_classes) of a batch of ``view_transform``.

    Of several views they are the logarithms of the mean probabilities.
    """
    if "image" in batch:
        return apply_model(model, variables, normalize(batch["image"]))

    def log_probabilities(images: jax.Array) -> jax.Array:
        return nn.log_softmax(apply_model(model, variables, normalize(images)))

    # One view after the other: the memory of one.
    views = [
        jax.lax.map(log_probabilities, jnp.moveaxis(array, 1, 0))
        for name, array in batch.items()
        if name.startswith(_PREFIX)
    ]
    joined = jnp.concatenate(views)  # (views, B, num_classes)
    return jax.nn.logsumexp(joined, 0) - math.log(len(joined))
