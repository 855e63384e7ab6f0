"""DeepLabV3 and FCN for semantic segmentation, on any backbone of the zoo."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from resnest_jax.errors import InputError
from resnest_jax.models.layers.activation import relu
from resnest_jax.models.layers.convolution import Conv
from resnest_jax.models.layers.normalization import BatchNorm
from resnest_jax.models.layers.resize import resize_aligned
from resnest_jax.models.resnest import EXPANSION, ResNeSt

ModuleDef = Callable[..., nn.Module]

HEADS = ("deeplabv3", "fcn")
RATES = (12, 24, 36)  # of the ASPP at output stride 8
ASPP_FEATURES = 256

# torch's default for convolutions, U(-1/sqrt(fan_in), 1/sqrt(fan_in)).
head_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling (arXiv 1706.05587): (B, H, W, C) -> (B, H, W, features).

    Five branches of ``features`` channels: 1x1, three dilated 3x3, and the mean over the image;
    then their projection.
    """

    features: int
    rates: tuple[int, ...]
    dropout: float
    conv: ModuleDef
    norm: ModuleDef

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        def layer(x: jax.Array, name: str, **settings: int) -> jax.Array:
            x = self.conv(self.features, **settings, name=f"conv{name}")(x)
            return relu(self.norm(name=f"bn{name}")(x, train))

        branches = [layer(x, "0")]
        for i, rate in enumerate(self.rates, 1):
            branches.append(layer(x, f"{i}", kernel_size=3, dilation=rate))
        pooled = jnp.mean(x, (1, 2), keepdims=True, dtype=jnp.promote_types(x.dtype, jnp.float32))
        pooled = layer(pooled.astype(x.dtype), "_pool")
        branches.append(jnp.broadcast_to(pooled, branches[0].shape))
        x = layer(jnp.concatenate(branches, -1), "_project")
        # Whole channels are dropped.
        return nn.Dropout(self.dropout, broadcast_dims=(1, 2))(x, deterministic=not train)


class Classifier(nn.Module):
    """3x3, norm, ReLU, dropout and a 1x1 to the classes: (B, H, W, C) -> (B, H, W, num_classes)."""

    features: int
    num_classes: int
    dropout: float
    conv: ModuleDef
    norm: ModuleDef

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = self.conv(self.features, kernel_size=3, name="conv1")(x)
        x = relu(self.norm(name="bn1")(x, train))
        x = nn.Dropout(self.dropout)(x, deterministic=not train)
        return self.conv(self.num_classes, use_bias=True, name="conv2")(x)


class DeepLabHead(nn.Module):
    """ASPP and a classifier: (B, H, W, C) -> (B, H, W, num_classes)."""

    num_classes: int
    rates: tuple[int, ...]
    aspp_dropout: float
    dropout: float
    conv: ModuleDef
    norm: ModuleDef

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        layers: dict[str, Any] = {"conv": self.conv, "norm": self.norm}
        x = ASPP(ASPP_FEATURES, self.rates, self.aspp_dropout, **layers, name="aspp")(x, train)
        classifier = Classifier(
            ASPP_FEATURES, self.num_classes, self.dropout, **layers, name="classifier"
        )
        return classifier(x, train)


class SegmentationModel(nn.Module):
    """A backbone with a segmentation head: DeepLabV3 (arXiv 1706.05587) or FCN (1411.4038).

    Call with images (B, H, W, C) of any float dtype, H and W >= 32, ``train`` and ``progress``, as
    ``ResNeSt``. Returns float32 logits (B, H, W, num_classes): those of the head at the backbone's
    stride, resized bilinearly with aligned corners. Training updates ``batch_stats`` and draws
    from the ``dropout`` stream if a rate is not 0. The pooled branch of DeepLabV3 normalises one
    value per image and channel, so it trains with two images at least.

    Attributes:
      backbone: a model without head, ``num_classes=0``; its ``dtype``, ``norm``, ``norm_groups``,
        ``implementation`` and ``platform`` hold for the heads too.
      head: ``deeplabv3`` or ``fcn``, on ``c5``.
      num_classes: classes of each pixel.
      auxiliary: a second FCN head, on ``c4``, whose loss helps in training.
      aspp_dropout: rate of whole channels after the ASPP's projection.
      dropout: rate before each 1x1 to the classes.

    Raises:
      InputError: if a field is out of range, or images have another rank or are too small.
    """

    backbone: ResNeSt
    head: str = "deeplabv3"
    num_classes: int = 21
    auxiliary: bool = False
    aspp_dropout: float = 0.5
    dropout: float = 0.1

    def __post_init__(self) -> None:
        _check_fields(self)
        super().__post_init__()

    def setup(self) -> None:
        b = self.backbone
        conv = partial(
            Conv,
            implementation=b.implementation,
            platform=b.platform,
            dtype=b.dtype,
            kernel_init=head_init,
        )
        norm = partial(BatchNorm, mode=b.norm, groups=b.norm_groups, dtype=b.dtype)
        layers: dict[str, Any] = {"conv": conv, "norm": norm}
        if self.head == "deeplabv3":
            rates = tuple(rate * 8 // b.output_stride for rate in RATES)
            dropouts = (self.aspp_dropout, self.dropout)
            self.main = DeepLabHead(self.num_classes, rates, *dropouts, **layers, name="head")
        else:
            self.main = self._fcn(b.planes[3], layers, "head")
        if self.auxiliary:
            self.second = self._fcn(b.planes[2], layers, "auxiliary")

    def _fcn(self, planes: int, layers: dict[str, Any], name: str) -> Classifier:
        # A quarter of the channels of the feature map.
        features = EXPANSION * planes // 4
        return Classifier(features, self.num_classes, self.dropout, **layers, name=name)

    def scores(
        self, images: jax.Array, train: bool = False, progress: jax.Array | float = 1.0
    ) -> dict[str, jax.Array]:
        """Return logits at the backbone's stride: ``out``, and with the auxiliary head ``aux``."""
        features = self.backbone.features(images, train, progress)
        scores = {"out": self.main(features["c5"], train)}
        if self.auxiliary:
            scores["aux"] = self.second(features["c4"], train)
        return scores

    def outputs(
        self, images: jax.Array, train: bool = False, progress: jax.Array | float = 1.0
    ) -> dict[str, jax.Array]:
        """Return float32 logits (B, H, W, num_classes) of all heads, see ``scores``."""
        scores = self.scores(images, train, progress)
        return {name: self.logits_at(logits, images.shape) for name, logits in scores.items()}

    def __call__(
        self, images: jax.Array, train: bool = False, progress: jax.Array | float = 1.0
    ) -> jax.Array:
        if self.is_initializing():  # of all heads
            return self.outputs(images, train, progress)["out"]
        features = self.backbone.features(images, train, progress)
        return self.logits_at(self.main(features["c5"], train), images.shape)

    @nn.nowrap
    def logits_at(self, scores: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Return scores (B, h, w, C) as float32 logits of images of a shape (B, H, W, ...)."""
        wide = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
        return resize_aligned(wide, (shape[1], shape[2]), self.backbone.platform)


def _check_fields(model: SegmentationModel) -> None:
    if not isinstance(model.backbone, ResNeSt) or model.backbone.num_classes:
        raise InputError("model field backbone must be a model of the zoo with num_classes=0")
    if model.head not in HEADS:
        raise InputError(f"model field head must be one of {HEADS}; got {model.head!r}")
    if not isinstance(model.num_classes, int) or model.num_classes < 1:
        raise InputError(
            f"model field num_classes must be an integer >= 1; got {model.num_classes!r}"
        )
    for field in ("aspp_dropout", "dropout"):
        value = getattr(model, field)
        if not isinstance(value, int | float) or not 0 <= value < 1:
            raise InputError(f"model field {field} must be in [0, 1); got {value!r}")
