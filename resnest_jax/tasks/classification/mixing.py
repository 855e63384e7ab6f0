"""Mixup and cutmix of a batch, inside the jitted step."""

import dataclasses
import math
from typing import TypeVar

import jax
import jax.numpy as jnp

from resnest_jax.errors import InputError

Targets = TypeVar("Targets")


@dataclasses.dataclass(frozen=True)
class Mixing:
    """Mix every image, and its target, with its partner in the reversed batch.

    Attributes:
      mixup: a of mixup's Beta(a, a) (ResNeSt paper, section 5.1); 0 is none.
      cutmix: a of cutmix's Beta(a, a) (arXiv 1905.04899): a box of the image comes from the
        partner, and the targets are weighted by its area; 0 is none. With both, each draw takes
        one or the other with probability 1/2.
      per_sample: draw per image, as in the ResNeSt paper, not per batch, as in its authors' code.
      groups: equal parts of the batch, each reversed separately; with one part per device, images
        stay on their device.

    Raises:
      InputError: if a parameter is negative; when called, if the groups do not divide the batch.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    per_sample: bool = False
    groups: int = 1

    def __post_init__(self):
        for name in ("mixup", "cutmix"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(
                    f"mix.{name} must not be negative, and finite; got {getattr(self, name)}"
                )

    def __call__(
        self, rng: jax.Array, images: jax.Array, targets: Targets
    ) -> tuple[jax.Array, Targets]:
        """Mix images (B, H, W, C) and targets, an array (B, classes) or a tree of such arrays."""
        if not (self.mixup or self.cutmix):
            return images, targets
        batch, height, width, _ = images.shape
        if batch % self.groups:
            raise InputError(f"{self.groups} parts must divide the batch of {batch} images to mix")
        draws = batch if self.per_sample else 1
        choice_rng, mixup_rng, cutmix_rng, box_rng = jax.random.split(rng, 4)
        # own: the share of the image itself, per pixel (draws, H, W); its mean is share (draws,).
        own = jnp.ones((draws, height, width))
        if self.mixup:
            weight = jax.random.beta(mixup_rng, self.mixup, self.mixup, (draws,))
            own = own * weight[:, None, None]
        if self.cutmix:
            area = 1 - jax.random.beta(cutmix_rng, self.cutmix, self.cutmix, (draws,))
            outside = 1 - random_boxes(box_rng, area, height, width)
            cut = jax.random.bernoulli(choice_rng, 0.5 if self.mixup else 1.0, (draws,))
            own = jnp.where(cut[:, None, None], outside, own)
        share = own.mean((1, 2))
        return (
            self._blend(images, own[..., None].astype(images.dtype)),
            jax.tree.map(lambda target: self._blend(target, share[:, None]), targets),
        )

    def _blend(self, x: jax.Array, own: jax.Array) -> jax.Array:
        parts = x.reshape(self.groups, -1, *x.shape[1:])
        return own * x + (1 - own) * parts[:, ::-1].reshape(x.shape)


def random_boxes(rng: jax.Array, area: jax.Array, height: int, width: int) -> jax.Array:
    """Draw masks (draws, height, width): 1 inside a box of the image's shape, 0 outside.

    ``area`` (draws,) is the fraction of the image that the complete box covers. Its centre is
    uniform; the part of a box outside the image is cut off.
    """
    centre_rng, other_rng = jax.random.split(rng)

    def inside(rng: jax.Array, size: int) -> jax.Array:
        side = jnp.floor(size * jnp.sqrt(area))
        centre = jax.random.randint(rng, area.shape, 0, size)
        start = jnp.clip(centre - side // 2, 0, size)[:, None]
        end = jnp.clip(centre + side // 2, 0, size)[:, None]
        at = jnp.arange(size)[None]
        return ((at >= start) & (at < end)).astype(jnp.float32)

    rows, columns = inside(centre_rng, height), inside(other_rng, width)
    return rows[:, :, None] * columns[:, None, :]
