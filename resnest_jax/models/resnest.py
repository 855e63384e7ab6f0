"""ResNeSt and the ResNets it is compared with: stem, block, stages, head."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype

from resnest_jax.errors import InputError
from resnest_jax.models.convolution import EXPRESSIONS, Conv, uniform_init
from resnest_jax.models.normalization import BatchNorm
from resnest_jax.models.split_attention import SplitAttention

ModuleDef = Callable[..., nn.Module]

EXPANSION = 4  # output channels of a bottleneck over its planes
MIN_SIZE = 32


def average_pool(x: jax.Array, strides: int) -> jax.Array:
    """The 3x3 average pool of AVD: one pixel of padding, which counts in the mean."""
    return nn.avg_pool(x, (3, 3), (strides, strides), ((1, 1), (1, 1)))


def shortcut_pool(x: jax.Array, strides: int) -> jax.Array:
    """The shortcut's average pool: odd edges pool what is there (ceil mode, no padding counted)."""
    window = (strides, strides)
    return nn.avg_pool(x, window, window, "SAME", count_include_pad=False)


class Stem(nn.Module):
    """Images to (B, H/2, W/2, width): three 3x3 convolutions if ``deep``, else one 7x7."""

    width: int
    deep: bool
    conv: ModuleDef
    norm: ModuleDef

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        if not self.deep:
            layers = [(self.width, 7, 2)]
        else:
            layers = [(self.width // 2, 3, 2), (self.width // 2, 3, 1), (self.width, 3, 1)]
        for i, (features, kernel_size, strides) in enumerate(layers, 1):
            x = self.conv(features, kernel_size=kernel_size, strides=strides, name=f"conv{i}")(x)
            x = nn.relu(self.norm(name=f"bn{i}")(x, train))
        return x


class Bottleneck(nn.Module):
    """1x1, split attention (or a grouped 3x3 at radix 0), 1x1, and the shortcut.

    Attributes:
      planes: base width; the output has ``4 * planes`` channels.
      width: channels of the split attention.
      avd: average-pool instead of striding, in the blocks that stride or start a stage.
      avd_first: do so before the 3x3 rather than after it.
      downsample: whether the shortcut is a projection.
    """

    planes: int
    width: int
    radix: int
    cardinality: int
    strides: int
    dilation: int
    avd: bool
    avd_first: bool
    avg_down: bool
    downsample: bool
    last_scale_init: nn.initializers.Initializer
    conv: ModuleDef
    norm: ModuleDef

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        out = nn.relu(self.norm(name="bn1")(self.conv(self.width, name="conv1")(x), train))
        if self.avd and self.avd_first:
            out = average_pool(out, self.strides)
        out = self._spatial(out, train)
        if self.avd and not self.avd_first:
            out = average_pool(out, self.strides)
        out = self.conv(EXPANSION * self.planes, name="conv3")(out)
        out = self.norm(name="bn3", scale_init=self.last_scale_init)(out, train)
        return nn.relu(out + self._shortcut(x, train))

    def _spatial(self, x: jax.Array, train: bool) -> jax.Array:
        strides = 1 if self.avd else self.strides
        settings = {"kernel_size": 3, "strides": strides, "dilation": self.dilation}
        if self.radix == 0:
            x = self.conv(self.width, **settings, groups=self.cardinality, name="conv2")(x)
            return nn.relu(self.norm(name="bn2")(x, train))
        return SplitAttention(
            self.width,
            self.radix,
            self.cardinality,
            **settings,
            conv=self.conv,
            norm=self.norm,
            name="conv2",
        )(x, train)

    def _shortcut(self, x: jax.Array, train: bool) -> jax.Array:
        if not self.downsample:
            return x
        strides = self.strides
        if self.avg_down and strides > 1:
            x, strides = shortcut_pool(x, strides), 1
        x = self.conv(EXPANSION * self.planes, strides=strides, name="downsample_conv")(x)
        return self.norm(name="downsample_bn")(x, train)


class ResNeSt(nn.Module):
    """ResNeSt (arXiv 2004.08955); with ``radix=0`` a ResNet, ResNet-D or ResNeXt.

    Call with images (B, H, W, C), H and W at least 32 and odd if you like, of any float dtype,
    and ``train``; returns float32 logits (B, num_classes). Training updates ``batch_stats`` and
    draws from the ``dropout`` stream if ``dropout`` is not 0.

    Attributes:
      stage_sizes: blocks in stages 1 to 4.
      num_classes: classes of the head; 0 gives the pooled features (B, 2048) instead of logits.
      radix: R, splits in a cardinal group; 0 is a plain grouped convolution.
      cardinality: K, cardinal groups.
      bottleneck_width: d; a stage of ``planes`` has ``int(planes * d / 64) * K`` channels in its
        3x3 layers.
      planes: base widths of the stages.
      stem_width: w; the stem ends in ``2 * w`` channels.
      deep_stem: three 3x3 convolutions instead of one 7x7.
      avg_down: average-pooled shortcuts (ResNet-D).
      avd: average-pool downsampling in the block; ``avd_first``: before its 3x3.
      output_stride: 32, or 16 or 8 by dilating the last one or two stages.
      dropout: rate before the head.
      zero_init_last: start every block as its shortcut: scale 0 in its last batch norm.
      expression: how grouped convolutions are written, see ``models.convolution``.
      dtype: dtype of activations; parameters, statistics and logits are float32.

    Raises:
      InputError: on a field out of range or images of another rank or too small.
    """

    stage_sizes: tuple[int, ...]
    num_classes: int = 1000
    radix: int = 2
    cardinality: int = 1
    bottleneck_width: int = 64
    planes: tuple[int, ...] = (64, 128, 256, 512)
    stem_width: int = 32
    deep_stem: bool = True
    avg_down: bool = True
    avd: bool = True
    avd_first: bool = False
    output_stride: int = 32
    dropout: float = 0.0
    zero_init_last: bool = True
    expression: str = "auto"
    dtype: Dtype = jnp.float32

    def __post_init__(self):
        _check_fields(self)
        super().__post_init__()

    def setup(self):
        conv = partial(Conv, expression=self.expression, dtype=self.dtype)
        norm = partial(BatchNorm, dtype=self.dtype)
        self.stem = Stem(2 * self.stem_width, self.deep_stem, conv, norm)
        for name, settings in self.block_settings():
            setattr(self, name, Bottleneck(**settings, conv=conv, norm=norm))
        if self.num_classes:
            fan_in = EXPANSION * self.planes[-1]
            init = uniform_init(fan_in)
            self.head = nn.Dense(self.num_classes, kernel_init=init, bias_init=init)
        self.head_dropout = nn.Dropout(self.dropout)

    def block_settings(self) -> list[tuple[str, dict]]:
        """Name and fields of every block, in order: where strides and dilations are decided."""
        ones, zeros = nn.initializers.ones, nn.initializers.zeros
        blocks, dilation, reached = [], 1, 4
        for stage, (size, planes) in enumerate(zip(self.stage_sizes, self.planes, strict=True), 1):
            strides = 1 if stage == 1 else 2
            # Past the output stride a stage dilates, its first block by the rate before it.
            first_dilation = dilation
            if strides == 2 and reached == self.output_stride:
                strides, dilation = 1, 2 * dilation
            reached *= strides
            for block in range(1, size + 1):
                first = block == 1
                settings = {
                    "planes": planes,
                    "width": int(planes * self.bottleneck_width / 64) * self.cardinality,
                    "radix": self.radix,
                    "cardinality": self.cardinality,
                    "strides": strides if first else 1,
                    "dilation": first_dilation if first else dilation,
                    "avd": self.avd and first and stage > 1,
                    "avd_first": self.avd_first,
                    "avg_down": self.avg_down,
                    "downsample": first,
                    "last_scale_init": zeros if self.zero_init_last else ones,
                }
                blocks.append((f"stage{stage}_block{block}", settings))
        return blocks

    def features(self, images: jax.Array, train: bool = False) -> dict[str, jax.Array]:
        """Endpoints: ``c1`` (B, H/2, W/2, 2w), the stem before its max-pool, and ``c2`` to ``c5``.

        ``c2`` (B, H/4, W/4, 256) to ``c5`` (B, H/32, W/32, 2048), sizes rounded up, are the
        outputs of stages 1 to 4; with a smaller ``output_stride`` the later ones stay at it.
        """
        _check_images(images)
        x = self.stem(images.astype(self.dtype), train)
        endpoints = {"c1": x}
        x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        for name, _ in self.block_settings():
            x = getattr(self, name)(x, train)
            endpoints[f"c{int(name[5]) + 1}"] = x
        return endpoints

    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        x = self.features(images, train)["c5"]
        x = jnp.mean(x, (1, 2), dtype=jnp.float32)
        x = self.head_dropout(x, deterministic=not train)
        return self.head(x) if self.num_classes else x


def _check_images(images: jax.Array) -> None:
    if images.ndim != 4 or min(images.shape[1:3]) < MIN_SIZE:
        raise InputError(
            f"images must be (B, H, W, C) with H, W >= {MIN_SIZE}; got shape {images.shape}"
        )


def _check_fields(model: ResNeSt) -> None:
    minima = {"num_classes": 0, "radix": 0, "cardinality": 1, "bottleneck_width": 1}
    minima |= {"stem_width": 1}
    for field, minimum in minima.items():
        value = getattr(model, field)
        if not isinstance(value, int) or value < minimum:
            raise InputError(f"model field {field} must be an integer >= {minimum}; got {value!r}")
    for field in ("stage_sizes", "planes"):
        value = getattr(model, field)
        if len(value) != 4 or any(not isinstance(n, int) or n < 1 for n in value):
            raise InputError(f"model field {field} must be four positive integers; got {value!r}")
    choices = {"output_stride": (8, 16, 32), "expression": EXPRESSIONS}
    for field, allowed in choices.items():
        if (value := getattr(model, field)) not in allowed:
            raise InputError(f"model field {field} must be one of {allowed}; got {value!r}")
    if not 0 <= model.dropout < 1:
        raise InputError(f"model field dropout must be in [0, 1); got {model.dropout!r}")
    try:
        is_float = jnp.issubdtype(jnp.dtype(model.dtype), jnp.floating)
    except TypeError:
        is_float = False
    if not is_float:
        raise InputError(f"model field dtype must be a float dtype; got {model.dtype!r}")
    groups = max(model.radix, 1) * model.cardinality
    for planes in model.planes:
        width = int(planes * model.bottleneck_width / 64) * model.cardinality
        if width == 0 or width % groups:
            raise InputError(
                f"model fields radix {model.radix}, cardinality {model.cardinality}: their "
                f"{groups} groups must divide the {width} channels that bottleneck_width "
                f"{model.bottleneck_width} gives at planes {planes}"
            )
