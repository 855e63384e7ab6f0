"""Names of the entries of torch state dictionaries, and their paths in the variables."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from resnest_jax.models.deeplab import SegmentationModel
from resnest_jax.models.resnest import ResNeSt

BATCH_NORM = (
    ("weight", "params", "scale"),
    ("bias", "params", "bias"),
    ("running_mean", "batch_stats", "mean"),
    ("running_var", "batch_stats", "var"),
)
COUNTER = "num_batches_tracked"  # in every torch batch norm; flax has no counterpart


class Entry(NamedTuple):
    """A tensor of a torch state dictionary.

    Attributes:
      key: its name.
      path: its path in the variables; None: they do not hold it.
      constant: its value then.
    """

    key: str
    path: tuple[str, ...] | None
    constant: np.ndarray | None = None


def layer(torch_name: str, path: tuple[str, ...], bias: bool = False) -> Iterator[Entry]:
    """Yield the entries of a convolution or a dense layer."""
    yield Entry(f"{torch_name}.weight", ("params", *path, "kernel"))
    if bias:
        yield Entry(f"{torch_name}.bias", ("params", *path, "bias"))


def norm(torch_name: str, path: tuple[str, ...]) -> Iterator[Entry]:
    """Yield the entries of a batch norm."""
    for leaf, collection, name in BATCH_NORM:
        yield Entry(f"{torch_name}.{leaf}", (collection, *path, name))
    yield Entry(f"{torch_name}.{COUNTER}", None, np.zeros((), np.int64))


def below(module: str, entry: Entry) -> Entry:
    """Return the entry of a model that is a module of another model, with the same key."""
    path = entry.path
    return entry if path is None else entry._replace(path=(path[0], module, *path[1:]))


def _stem(model: ResNeSt) -> Iterator[Entry]:
    if not model.deep_stem:
        yield from layer("conv1", ("stem", "conv1"))
        yield from norm("bn1", ("stem", "bn1"))
        return
    for i in (1, 2, 3):
        yield from layer(f"conv1.{3 * i - 3}", ("stem", f"conv{i}"))
        yield from norm(f"conv1.{3 * i - 2}" if i < 3 else "bn1", ("stem", f"bn{i}"))


def _selective_kernel(conv2: str, path: tuple[str, ...]) -> Iterator[Entry]:
    for i in (1, 2):
        yield from layer(f"{conv2}.paths.{i - 1}.conv", (*path, f"conv{i}"))
        yield from norm(f"{conv2}.paths.{i - 1}.bn", (*path, f"bn{i}"))
    yield from layer(f"{conv2}.attn.fc_reduce", (*path, "conv_reduce"))
    yield from norm(f"{conv2}.attn.bn", (*path, "bn_reduce"))
    yield from layer(f"{conv2}.attn.fc_select", (*path, "conv_select"))


def _block(model: ResNeSt, torch_name: str, block: str, downsample: bool) -> Iterator[Entry]:
    # timm's blocks with selective kernels hold each convolution and its norm in one module.
    paired = model.attention == "sk"
    convs = {i: f"{torch_name}.conv{i}{'.conv' if paired else ''}" for i in (1, 3)}
    norms = {i: f"{torch_name}.{f'conv{i}.bn' if paired else f'bn{i}'}" for i in (1, 3)}
    yield from layer(convs[1], (block, "conv1"))
    yield from norm(norms[1], (block, "bn1"))
    conv2 = f"{torch_name}.conv2"
    if model.attention == "sk":
        yield from _selective_kernel(conv2, (block, "conv2"))
    elif model.radix == 0:
        yield from layer(conv2, (block, "conv2"))
        yield from norm(f"{torch_name}.bn2", (block, "bn2"))
    else:
        yield from layer(f"{conv2}.conv", (block, "conv2", "conv"))
        yield from norm(f"{conv2}.bn0", (block, "conv2", "bn0"))
        yield from layer(f"{conv2}.fc1", (block, "conv2", "fc1"), bias=True)
        yield from norm(f"{conv2}.bn1", (block, "conv2", "bn1"))
        yield from layer(f"{conv2}.fc2", (block, "conv2", "fc2"), bias=True)
    yield from layer(convs[3], (block, "conv3"))
    yield from norm(norms[3], (block, "bn3"))
    if model.attention == "se":
        for fc in ("fc1", "fc2"):
            yield from layer(f"{torch_name}.se.{fc}", (block, "se", fc), bias=True)
    if downsample:
        first = 1 if model.avg_down else 0  # the average pool has index 0
        yield from layer(f"{torch_name}.downsample.{first}", (block, "downsample_conv"))
        yield from norm(f"{torch_name}.downsample.{first + 1}", (block, "downsample_bn"))


def classification_entries(model: ResNeSt) -> Iterator[Entry]:
    """Yield the entries of a classifier, or of a backbone."""
    yield from _stem(model)
    for name, settings in model.block_settings():
        stage, block = name.removeprefix("stage").split("_block")
        torch_name = f"layer{stage}.{int(block) - 1}"
        yield from _block(model, torch_name, name, settings["downsample"])
    if model.num_classes:
        yield from layer("fc", ("head",), bias=True)


def segmentation_entries(model: SegmentationModel) -> Iterator[Entry]:
    """Yield the entries of a segmentation model under the authors' names."""
    for entry in classification_entries(model.backbone):
        yield below("backbone", entry)._replace(key=f"pretrained.{entry.key}")
    if model.head == "fcn":
        yield from _classifier("head.conv5", ("head",))
    else:
        aspp = [(f"b{i}", 0, f"{i}") for i in range(4)]
        for branch, index, ours in (*aspp, ("b4.gap", 1, "_pool"), ("project", 0, "_project")):
            prefix = f"head.aspp.{branch}"
            yield from layer(f"{prefix}.{index}", ("head", "aspp", f"conv{ours}"))
            yield from norm(f"{prefix}.{index + 1}", ("head", "aspp", f"bn{ours}"))
        yield from _classifier("head.block", ("head", "classifier"))
    if model.auxiliary:
        yield from _classifier("auxlayer.conv5", ("auxiliary",))


def _classifier(torch_name: str, path: tuple[str, ...]) -> Iterator[Entry]:
    yield from layer(f"{torch_name}.0", (*path, "conv1"))
    yield from norm(f"{torch_name}.1", (*path, "bn1"))
    yield from layer(f"{torch_name}.4", (*path, "conv2"), bias=True)
