"""ResNeSt and the ResNets it is compared with: stem, block, stages, head."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype
from jax import lax

from resnest_jax.errors import InputError
from resnest_jax.models.layers.activation import relu
from resnest_jax.models.layers.attention_units import SelectiveKernel, SqueezeExcitation
from resnest_jax.models.layers.convolution import Conv, uniform_init
from resnest_jax.models.layers.normalization import BatchNorm
from resnest_jax.models.layers.platforms import on_cpu
from resnest_jax.models.layers.pooling import average_pool, max_pool, shortcut_pool
from resnest_jax.models.layers.regularization import drop_block_masks, drop_path
from resnest_jax.models.layers.split_attention import SplitAttention
from resnest_jax.models.resnest_fields import check_fields

ModuleDef = Callable[..., nn.Module]

EXPANSION = 4  # output channels of a bottleneck / its planes
MIN_SIZE = 32
PART = 8  # images that a folded network works on at a time on CPU: their maps stay in the cache


class Stem(nn.Module):
    """Images -> (B, H/2, W/2, width): three 3x3 convolutions if ``deep``, else one 7x7."""

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
            x = relu(self.norm(name=f"bn{i}")(x, train))
        return x


class Bottleneck(nn.Module):
    """1x1, split attention (or a grouped 3x3 at radix 0), 1x1, and the shortcut.

    Each of the three layers is multiplied by a mask of DropBlock, if there are ``masks``.

    Attributes:
      planes: base width; the output has ``4 * planes`` channels.
      width: channels of the split attention.
      attention: ``split``, or at radix 0 ``se`` or ``sk``, see ``ResNeSt``.
      avd: average pool instead of a stride, in a block that has a stride or starts a stage.
      avd_first: pool before the 3x3, not after it.
      downsample: the shortcut is a projection.
      platform: target platform of the pools, see ``ResNeSt``.
      drop_path: rate of dropping the branch.
    """

    planes: int
    width: int
    radix: int
    cardinality: int
    attention: str
    strides: int
    dilation: int
    avd: bool
    avd_first: bool
    avg_down: bool
    downsample: bool
    drop_path: float
    last_scale_init: nn.initializers.Initializer
    platform: str | None
    conv: ModuleDef
    norm: ModuleDef

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool, masks: Sequence[jax.Array] | None = None
    ) -> jax.Array:
        def drop_block(x: jax.Array, layer: int) -> jax.Array:
            return x if masks is None else x * masks[layer]

        out = self.norm(name="bn1")(self.conv(self.width, name="conv1")(x), train)
        out = relu(drop_block(out, 0))
        if self.avd and self.avd_first:
            out = average_pool(out, self.strides, self.platform)
        out = drop_block(self._spatial(out, train), 1)
        if self.avd and not self.avd_first:
            out = average_pool(out, self.strides, self.platform)
        out = self.conv(EXPANSION * self.planes, name="conv3")(out)
        out = self.norm(name="bn3", scale_init=self.last_scale_init)(out, train)
        if self.attention == "se":
            out = SqueezeExcitation(conv=self.conv, name="se")(out)
        out = drop_path(self.drop_path)(drop_block(out, 2), deterministic=not train)
        return relu(out + self._shortcut(x, train))

    def mask_shapes(self, height: int, width: int) -> list[tuple[int, int, int]]:
        """Return (H, W, C) of DropBlock's three maps, for an input (B, height, width, C)."""
        before, after = (height, width), (-(-height // self.strides), -(-width // self.strides))
        spatial = before if self.avd and not self.avd_first else after
        return [(*before, self.width), (*spatial, self.width), (*after, EXPANSION * self.planes)]

    def _spatial(self, x: jax.Array, train: bool) -> jax.Array:
        strides = 1 if self.avd else self.strides
        settings: dict[str, Any] = {"strides": strides, "dilation": self.dilation}
        if self.attention == "sk":
            settings |= {"conv": self.conv, "norm": self.norm, "name": "conv2"}
            return SelectiveKernel(self.width, **settings)(x, train)
        settings["kernel_size"] = 3
        if self.radix == 0:
            x = self.conv(self.width, **settings, groups=self.cardinality, name="conv2")(x)
            return relu(self.norm(name="bn2")(x, train))
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
            x, strides = shortcut_pool(x, strides, self.platform), 1
        x = self.conv(EXPANSION * self.planes, strides=strides, name="downsample_conv")(x)
        return self.norm(name="downsample_bn")(x, train)


class ResNeSt(nn.Module):
    """ResNeSt (arXiv 2004.08955); with ``radix=0`` a ResNet, ResNet-D or ResNeXt.

    Call with images (B, H, W, C) of any float dtype, H and W >= 32, odd sizes allowed; ``train``;
    and ``progress``, the completed fraction of training, from 0 to 1, with which ``drop_block``
    rises. Returns float32 logits (B, num_classes). Training updates ``batch_stats`` and draws from
    the ``dropout`` stream if a drop rate is not 0.

    Attributes:
      stage_sizes: blocks in stages 1 to 4.
      num_classes: classes of the head; 0 gives the pooled features (B, 2048) instead of logits.
      radix: R, splits per cardinal group; 0 is a plain grouped convolution.
      cardinality: K, cardinal groups.
      bottleneck_width: d; a stage of ``planes`` has ``int(planes * d / 64) * K`` channels in its
        3x3 layers.
      planes: base widths of the stages.
      stem_width: w; the stem ends in ``2 * w`` channels.
      deep_stem: three 3x3 convolutions instead of one 7x7.
      avg_down: average-pooled shortcuts (ResNet-D).
      avd: average-pool downsampling in the block; ``avd_first``: before its 3x3.
      attention: ``split``; at radix 0 also ``se`` (squeeze-and-excitation at the end of the block)
        or ``sk`` (a selective kernel instead of the 3x3).
      output_stride: 32, or 16 or 8 by dilating the last one or two stages.
      dropout: rate before the head.
      drop_block: rate of DropBlock in stages 3 and 4 at the end of training, rising linearly.
      drop_path: rate of dropping the last block's branch, rising linearly with depth (stochastic
        depth, arXiv 1603.09382).
      norm: ``batch``; ``frozen`` for fine-tuning with fixed batch norms; ``folded`` for results of
        ``resnest_jax.fold``. On one CPU device a folded network works on 8 images at a time, if
        they divide the batch.
      frozen_stages: n freezes the stem and stages 1 to n: no gradient, and running statistics in
        training too; 0 is none.
      norm_groups: parts of the batch, each with its own batch statistics; the number of devices
        gives the paper's, which were not synchronised.
      remat: stages whose activations are recomputed in the backward pass, to save memory.
      zero_init_last: start every block as its shortcut: scale 0 in its last batch norm.
      implementation: that of grouped convolutions, see ``layers.convolution.conv2d``.
      platform: target platform, ``cpu``, ``cuda``, ``rocm`` or ``tpu``, which selects the form of
        the pools and of ``auto``. None is JAX's default backend at the time of tracing. ``onnx``
        makes them, and products, the windows and convolutions that ONNX has operators for.
      dtype: dtype of activations; parameters, statistics and logits are float32. With float64,
        which needs ``jax.enable_x64``, logits are float64 too.

    Raises:
      InputError: if a field is out of range, or images have another rank or are too small.
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
    attention: str = "split"
    output_stride: int = 32
    dropout: float = 0.0
    drop_block: float = 0.0
    drop_path: float = 0.0
    norm: str = "batch"
    frozen_stages: int = 0
    norm_groups: int = 1
    remat: tuple[int, ...] = ()
    zero_init_last: bool = True
    implementation: str = "auto"
    platform: str | None = None
    dtype: Dtype = jnp.float32

    def __post_init__(self) -> None:
        check_fields(self)
        super().__post_init__()

    def setup(self) -> None:
        conv = partial(
            Conv, implementation=self.implementation, platform=self.platform, dtype=self.dtype
        )
        norm = partial(BatchNorm, mode=self.norm, groups=self.norm_groups, dtype=self.dtype)
        frozen = partial(norm, mode="frozen") if self.norm == "batch" else norm
        stem_norm = frozen if self.frozen_stages else norm
        self.stem = Stem(2 * self.stem_width, self.deep_stem, conv, stem_norm)
        remat_block = nn.remat(Bottleneck, static_argnums=(2,))  # train
        for name, settings in self.block_settings():
            block = remat_block if stage_of(name) in self.remat else Bottleneck
            layers = {
                "conv": conv,
                "norm": frozen if stage_of(name) <= self.frozen_stages else norm,
            }
            setattr(self, name, block(**settings, platform=self.platform, **layers))
        if self.num_classes:
            fan_in = EXPANSION * self.planes[-1]
            init = uniform_init(fan_in)
            self.head = nn.Dense(self.num_classes, kernel_init=init, bias_init=init)
        self.head_dropout = nn.Dropout(self.dropout)

    def block_settings(self) -> list[tuple[str, dict[str, Any]]]:
        """Return name and fields of every block, in order; chooses strides and dilations."""
        ones, zeros = nn.initializers.ones, nn.initializers.zeros
        blocks, dilation, reached = [], 1, 4
        for stage, (size, planes) in enumerate(zip(self.stage_sizes, self.planes, strict=True), 1):
            strides = 1 if stage == 1 else 2
            # After the output stride a stage dilates; its first block has the previous rate.
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
                    "attention": self.attention,
                    "strides": strides if first else 1,
                    "dilation": first_dilation if first else dilation,
                    "avd": self.avd and first and stage > 1,
                    "avd_first": self.avd_first,
                    "avg_down": self.avg_down,
                    "downsample": first,
                    "drop_path": self.drop_path * len(blocks) / max(sum(self.stage_sizes) - 1, 1),
                    "last_scale_init": zeros if self.zero_init_last else ones,
                }
                blocks.append((f"stage{stage}_block{block}", settings))
        return blocks

    def features(
        self, images: jax.Array, train: bool = False, progress: jax.Array | float = 1.0
    ) -> dict[str, jax.Array]:
        """Return ``c1`` (B, H/2, W/2, 2w), the stem before its max-pool, and ``c2`` to ``c5``.

        ``c2`` (B, H/4, W/4, 256) to ``c5`` (B, H/32, W/32, 2048), sizes rounded up, are the
        outputs of stages 1 to 4; with a smaller ``output_stride`` the later ones keep that stride.
        """
        _check_images(images)
        x = self.stem(images.astype(self.dtype), train)
        if self.frozen_stages:
            x = lax.stop_gradient(x)
        endpoints = {"c1": x}
        x = max_pool(x, self.platform)
        train_block = nn.jit(_train_block)
        masks = self._masks(x, progress) if train and self.drop_block else {}
        for name, _ in self.block_settings():
            block = getattr(self, name)
            x = train_block(block, x, masks.get(name)) if train else block(x, False)
            if stage_of(name) <= self.frozen_stages:
                x = lax.stop_gradient(x)
            endpoints[f"c{stage_of(name) + 1}"] = x
        return endpoints

    def _masks(self, x: jax.Array, progress: jax.Array | float) -> dict[str, list[jax.Array]]:
        """Draw DropBlock's masks of the blocks of stages 3 and 4; ``x`` enters stage 1."""
        names, shapes, size = [], [], x.shape[1:3]
        for name, _ in self.block_settings():
            maps = getattr(self, name).mask_shapes(*size)
            size = maps[-1][:2]
            if stage_of(name) >= 3:
                names.append(name)
                shapes += maps
        rng, rate = self.make_rng("dropout"), self.drop_block * progress
        masks = drop_block_masks(rng, shapes, rate, self.dtype)
        return {name: masks[3 * i : 3 * i + 3] for i, name in enumerate(names)}

    def __call__(
        self, images: jax.Array, train: bool = False, progress: jax.Array | float = 1.0
    ) -> jax.Array:
        _check_images(images)  # here too, so that an error names the whole batch
        if train or not self._worked_in_parts(images):
            return self._logits(images, train, progress)
        over_parts = nn.scan(
            lambda model, carry, part: (carry, model._logits(part, train, progress)),
            variable_broadcast="params",
        )
        _, logits = over_parts(self, None, images.reshape(-1, PART, *images.shape[1:]))
        return logits.reshape(-1, logits.shape[-1])

    def _worked_in_parts(self, images: jax.Array) -> bool:
        """Return whether a batch is several parts, which is faster: folded, on one CPU device."""
        batch = images.shape[0]
        several = isinstance(batch, int) and batch > PART and batch % PART == 0
        watched = self.is_initializing() or self.is_mutable_collection("intermediates")
        whole = self.norm != "folded" or watched or jax.device_count() > 1
        return several and not whole and on_cpu(self.platform)

    def _logits(self, images: jax.Array, train: bool, progress: jax.Array | float) -> jax.Array:
        x = self.features(images, train, progress)["c5"]
        x = jnp.mean(x, (1, 2), dtype=jnp.promote_types(x.dtype, jnp.float32))
        x = self.head_dropout(x, deterministic=not train)
        return self.head(x) if self.num_classes else x


def _train_block(block: nn.Module, x: jax.Array, masks: Sequence[jax.Array] | None) -> jax.Array:
    """Call a block in training; with ``nn.jit`` JAX traces equal blocks once, XLA inlines them."""
    return block(x, True, masks)


def stage_of(block: str) -> int:
    """Return the stage of a block from its name, ``stage{S}_block{B}``."""
    return int(block.removeprefix("stage").split("_")[0])


def _check_images(images: jax.Array) -> None:
    if images.ndim != 4 or min(images.shape[1:3]) < MIN_SIZE or not images.shape[3]:
        raise InputError(
            f"images must be (B, H, W, C) with H, W >= {MIN_SIZE}, C >= 1; got shape {images.shape}"
        )
