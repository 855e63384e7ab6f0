"""Convert variables to and from state dictionaries of the authors' PyTorch model and timm's."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from resnest_jax.errors import InputError
from resnest_jax.models.deeplab import SegmentationModel
from resnest_jax.models.detection.rcnn import RCNN
from resnest_jax.models.resnest import ResNeSt
from resnest_jax.weights.checks import check_numbers
from resnest_jax.weights.detectron import detection_entries
from resnest_jax.weights.entries import (
    COUNTER,
    Entry,
    classification_entries,
    segmentation_entries,
)

Network = ResNeSt | SegmentationModel | RCNN
FIRST_BLOCK = "layer1.0."
STEM = ("stem", "conv1", "kernel")


def torch_entries(model: Network) -> Iterator[Entry]:
    """Yield every entry of the torch state dictionary, in its order."""
    if isinstance(model, RCNN):
        return detection_entries(model)
    if isinstance(model, SegmentationModel):
        return segmentation_entries(model)
    return classification_entries(model)


def from_torch(state_dict: Mapping[str, np.ndarray], model: Network) -> dict[str, Any]:
    """Convert a torch state dictionary to ``{"params", "batch_stats"}``, float32.

    Args:
      state_dict: arrays in torch layout (convolutions OIHW, dense (out, in)) under the names of
        the authors' checkpoints; ``num_batches_tracked`` and anchors may be missing.
      model: the model of the entries.

    Raises:
      InputError: if entries are missing, unknown or of another shape, the first of which are named,
        or hold integers, NaN, infinity or other anchors than the model's.
    """
    entries = {entry.key: entry for entry in torch_entries(model)}
    arrays = {key: np.asarray(value) for key, value in state_dict.items()}
    if problems := misfits(arrays, model):
        lists = (f"{kind}: {_few(names)}" for kind, names in problems.items())
        raise InputError(f"the state dictionary does not fit the model; {'; '.join(lists)}")
    wanted = {key: entry.path for key, entry in entries.items() if entry.path is not None}
    check_numbers({key: arrays[key] for key in wanted}, "the state dictionary")
    _check_constants(arrays, entries)
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
    entries = {key: path for key, path, _ in torch_entries(model)}
    wanted = {key: path for key, path in entries.items() if path is not None}
    shapes = _shapes(model, arrays)
    problems = {
        "missing": [key for key in wanted if key not in arrays],
        "unknown": [k for k in arrays if k not in entries and not k.endswith(COUNTER)],
        "misshapen": [
            f"{key} is {arrays[key].shape}, expected {_torch_shape(shapes[path])}"
            for key, path in wanted.items()
            if key in arrays and _to_flax_layout(arrays[key]).shape != shapes[path]
        ],
    }
    return {kind: names for kind, names in problems.items() if names}


def to_torch(variables: Mapping[str, Any], model: Network) -> dict[str, np.ndarray]:
    """Convert variables to a state dictionary in torch layout and order: undo ``from_torch``.

    ``num_batches_tracked`` is 0; torch does not use it at its default momentum. A frozen norm of a
    detector has none.

    Raises:
      InputError: if the variables do not fit the model.
    """
    leaves = _by_path(variables)
    state_dict = {}
    for key, path, constant in torch_entries(model):
        if path is None:
            state_dict[key] = constant
        elif path not in leaves:
            raise InputError(f"the variables do not fit the model: no {'/'.join(path)}")
        else:
            state_dict[key] = _to_torch_layout(np.asarray(leaves.pop(path)))
    if leaves:
        names = _few(["/".join(path) for path in leaves])
        raise InputError(f"the variables do not fit the model: unexpected entries {names}")
    return state_dict


def _check_constants(arrays: Mapping[str, np.ndarray], entries: Mapping[str, Entry]) -> None:
    """Raise InputError if the file has other constants than the model, but for counters."""
    for key, entry in entries.items():
        if entry.constant is None or key.endswith(COUNTER) or key not in arrays:
            continue
        found, expected = arrays[key], entry.constant
        if found.shape != expected.shape or not np.allclose(found, expected, atol=1e-3):
            raise InputError(
                f"the state dictionary does not fit the model; {key} is {found.tolist()}, "
                f"expected {expected.tolist()}"
            )


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
    stem = next(key for key, path, _ in torch_entries(model) if path and path[-3:] == STEM)
    first = arrays.get(stem)
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
