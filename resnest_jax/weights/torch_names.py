"""Convert variables to and from state dictionaries of the authors' PyTorch model and timm's."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from resnest_jax.errors import InputError
from resnest_jax.models.deeplab import SegmentationModel
from resnest_jax.models.resnest import ResNeSt
from resnest_jax.weights.checks import check_numbers

BATCH_NORM = (
    ("weight", "params", "scale"),
    ("bias", "params", "bias"),
    ("running_mean", "batch_stats", "mean"),
    ("running_var", "batch_stats", "var"),
)
Network = ResNeSt | SegmentationModel
FIRST_BLOCK = "layer1.0."
COUNTER = "num_batches_tracked"  # in every torch batch norm; flax has no counterpart


class Entry(NamedTuple):
    """Name of a torch tensor, and its path in the variables; None for a counter."""

    key: str
    path: tuple[str, ...] | None


def _layer(torch_name: str, path: tuple[str, ...], bias: bool = False) -> Iterator[Entry]:
    yield Entry(f"{torch_name}.weight", ("params", *path, "kernel"))
    if bias:
        yield Entry(f"{torch_name}.bias", ("params", *path, "bias"))


def _norm(torch_name: str, path: tuple[str, ...]) -> Iterator[Entry]:
    for leaf, collection, name in BATCH_NORM:
        yield Entry(f"{torch_name}.{leaf}", (collection, *path, name))
    yield Entry(f"{torch_name}.{COUNTER}", None)


def _stem(model: ResNeSt) -> Iterator[Entry]:
    if not model.deep_stem:
        yield from _layer("conv1", ("stem", "conv1"))
        yield from _norm("bn1", ("stem", "bn1"))
        return
    for i in (1, 2, 3):
        yield from _layer(f"conv1.{3 * i - 3}", ("stem", f"conv{i}"))
        yield from _norm(f"conv1.{3 * i - 2}" if i < 3 else "bn1", ("stem", f"bn{i}"))


def _selective_kernel(conv2: str, path: tuple[str, ...]) -> Iterator[Entry]:
    for i in (1, 2):
        yield from _layer(f"{conv2}.paths.{i - 1}.conv", (*path, f"conv{i}"))
        yield from _norm(f"{conv2}.paths.{i - 1}.bn", (*path, f"bn{i}"))
    yield from _layer(f"{conv2}.attn.fc_reduce", (*path, "conv_reduce"))
    yield from _norm(f"{conv2}.attn.bn", (*path, "bn_reduce"))
    yield from _layer(f"{conv2}.attn.fc_select", (*path, "conv_select"))


def _block(model: ResNeSt, torch_name: str, block: str, downsample: bool) -> Iterator[Entry]:
    # timm's blocks with selective kernels hold each convolution and its norm in one module.
    paired = model.attention == "sk"
    convs = {i: f"{torch_name}.conv{i}{'.conv' if paired else ''}" for i in (1, 3)}
    norms = {i: f"{torch_name}.{f'conv{i}.bn' if paired else f'bn{i}'}" for i in (1, 3)}
    yield from _layer(convs[1], (block, "conv1"))
    yield from _norm(norms[1], (block, "bn1"))
    conv2 = f"{torch_name}.conv2"
    if model.attention == "sk":
        yield from _selective_kernel(conv2, (block, "conv2"))
    elif model.radix == 0:
        yield from _layer(conv2, (block, "conv2"))
        yield from _norm(f"{torch_name}.bn2", (block, "bn2"))
    else:
        yield from _layer(f"{conv2}.conv", (block, "conv2", "conv"))
        yield from _norm(f"{conv2}.bn0", (block, "conv2", "bn0"))
        yield from _layer(f"{conv2}.fc1", (block, "conv2", "fc1"), bias=True)
        yield from _norm(f"{conv2}.bn1", (block, "conv2", "bn1"))
        yield from _layer(f"{conv2}.fc2", (block, "conv2", "fc2"), bias=True)
    yield from _layer(convs[3], (block, "conv3"))
    yield from _norm(norms[3], (block, "bn3"))
    if model.attention == "se":
        for fc in ("fc1", "fc2"):
            yield from _layer(f"{torch_name}.se.{fc}", (block, "se", fc), bias=True)
    if downsample:
        first = 1 if model.avg_down else 0  # the average pool has index 0
        yield from _layer(f"{torch_name}.downsample.{first}", (block, "downsample_conv"))
        yield from _norm(f"{torch_name}.downsample.{first + 1}", (block, "downsample_bn"))


def torch_entries(model: Network) -> Iterator[Entry]:
    """Yield every entry of the torch state dictionary, in its order."""
    if isinstance(model, SegmentationModel):
        yield from _segmentation(model)
        return
    yield from _stem(model)
    for name, settings in model.block_settings():
        stage, block = name.removeprefix("stage").split("_block")
        torch_name = f"layer{stage}.{int(block) - 1}"
        yield from _block(model, torch_name, name, settings["downsample"])
    if model.num_classes:
        yield from _layer("fc", ("head",), bias=True)


def _segmentation(model: SegmentationModel) -> Iterator[Entry]:
    for key, path in torch_entries(model.backbone):
        yield Entry(f"pretrained.{key}", path and (path[0], "backbone", *path[1:]))
    if model.head == "fcn":
        yield from _classifier("head.conv5", ("head",))
    else:
        aspp = [(f"b{i}", 0, f"{i}") for i in range(4)]
        for branch, index, ours in (*aspp, ("b4.gap", 1, "_pool"), ("project", 0, "_project")):
            prefix = f"head.aspp.{branch}"
            yield from _layer(f"{prefix}.{index}", ("head", "aspp", f"conv{ours}"))
            yield from _norm(f"{prefix}.{index + 1}", ("head", "aspp", f"bn{ours}"))
        yield from _classifier("head.block", ("head", "classifier"))
    if model.auxiliary:
        yield from _classifier("auxlayer.conv5", ("auxiliary",))


def _classifier(torch_name: str, path: tuple[str, ...]) -> Iterator[Entry]:
    yield from _layer(f"{torch_name}.0", (*path, "conv1"))
    yield from _norm(f"{torch_name}.1", (*path, "bn1"))
    yield from _layer(f"{torch_name}.4", (*path, "conv2"), bias=True)


def from_torch(state_dict: Mapping[str, np.ndarray], model: Network) -> dict[str, Any]:
    """Convert a torch state dictionary to ``{"params", "batch_stats"}``, float32.

    Args:
      state_dict: arrays in torch layout (convolutions OIHW, dense (out, in)) under the names of
        the authors' checkpoints; ``num_batches_tracked`` may be missing.
      model: the model of the entries.

    Raises:
      InputError: if entries are missing, unknown or of another shape, the first of which are named,
        or hold integers, NaN or infinity.
    """
    arrays = {key: np.asarray(value) for key, value in state_dict.items()}
    if problems := misfits(arrays, model):
        lists = (f"{kind}: {_few(names)}" for kind, names in problems.items())
        raise InputError(f"the state dictionary does not fit the model; {'; '.join(lists)}")
    wanted = {key: path for key, path in torch_entries(model) if path is not None}
    check_numbers({key: arrays[key] for key in wanted}, "the state dictionary")
    variables: dict[str, Any] = {"params": {}, "batch_stats": {}}
    for key, path in wanted.items():
        node = variables
        for part in path[:-1]:
            node = node.setdefault(part, {})
        node[path[-1]] = jnp.asarray(_to_flax_layout(arrays[key]), jnp.float32)
    return variables


def misfits(arrays: Mapping[str, np.ndarray], model: Network) -> dict[str, list[str]]:
    """Return in what a state dictionary does not fit a model: empty if it fits.

    Of ``missing``, ``unknown`` and ``misshapen`` those that there are, each with its entries.
    """
    entries = dict(torch_entries(model))
    wanted = {key: path for key, path in entries.items() if path is not None}
    shapes = _shapes(model, arrays)
    problems = {
        "missing": [key for key in wanted if key not in arrays],
        "unknown": [key for key in arrays if key not in entries],
        "misshapen": [
            f"{key} is {arrays[key].shape}, expected {_torch_shape(shapes[path])}"
            for key, path in wanted.items()
            if key in arrays and _to_flax_layout(arrays[key]).shape != shapes[path]
        ],
    }
    return {kind: names for kind, names in problems.items() if names}


def to_torch(variables: Mapping[str, Any], model: Network) -> dict[str, np.ndarray]:
    """Convert variables to a state dictionary in torch layout and order: undo ``from_torch``.

    ``num_batches_tracked`` is 0; torch does not use it at its default momentum.

    Raises:
      InputError: if the variables do not fit the model.
    """
    leaves = _by_path(variables)
    state_dict = {}
    for key, path in torch_entries(model):
        if path is None:
            state_dict[key] = np.zeros((), np.int64)
        elif path not in leaves:
            raise InputError(f"the variables do not fit the model: no {'/'.join(path)}")
        else:
            state_dict[key] = _to_torch_layout(np.asarray(leaves.pop(path)))
    if leaves:
        names = _few(["/".join(path) for path in leaves])
        raise InputError(f"the variables do not fit the model: unexpected entries {names}")
    return state_dict


def strip_prefix(state_dict: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Remove what wrappers put before the names of the network, as ``module.`` or ``model.``.

    Raises:
      InputError: if it holds several networks.
    """
    blocks = [key.partition(FIRST_BLOCK) for key in state_dict]
    prefixes = {start for start, found, _ in blocks if found and (not start or start[-1] == ".")}
    if len(prefixes) > 1:
        names = ", ".join(repr(prefix) for prefix in sorted(prefixes))
        raise InputError(f"the state dictionary holds several networks, under {names}; keep one")
    prefix = prefixes.pop() if prefixes else ""
    return {key.removeprefix(prefix): value for key, value in state_dict.items()}


def _few(names: list[str]) -> str:
    more = f", ... ({len(names)} in all)" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _by_path(variables: Mapping[str, Any]) -> dict[tuple[str, ...], Any]:
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    return {tuple(part.key for part in path): leaf for path, leaf in leaves}


def _shapes(model: Network, arrays: Mapping[str, np.ndarray]) -> dict[tuple[str, ...], tuple]:
    """Return shapes by path; input channels are those of the file's first convolution."""
    first = arrays.get(next(torch_entries(model)).key)
    channels = first.shape[1] if first is not None and first.ndim == 4 else 3
    images = jax.ShapeDtypeStruct((1, 32, 32, channels), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    return {path: leaf.shape for path, leaf in _by_path(variables).items()}


def _to_flax_layout(array: np.ndarray) -> np.ndarray:
    """OIHW -> HWIO, (out, in) -> (in, out); vectors stay."""
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def _to_torch_layout(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T)


def _torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[3], shape[2], shape[0], shape[1]) if len(shape) == 4 else shape[::-1]
