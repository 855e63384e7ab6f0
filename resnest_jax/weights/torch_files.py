"""Read and write PyTorch's files of weights, without running the code that they may hold."""

import io
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from resnest_jax.errors import InputError, import_package

# Where training codes put the state dictionary of the network; the first that is there is read.
PLACES = ("state_dict", "model_state_dict", "model", "model_ema", "ema", "net", "module")
# Packages of settings and numbers that training codes store beside the weights.
HARMLESS = (
    "argparse",
    "collections",
    "datetime",
    "easydict",
    "lightning",
    "ml_collections",
    "numpy",
    "omegaconf",
    "pathlib",
    "pytorch_lightning",
    "types",
    "typing",
    "yacs",
)


class _StandIn(dict):
    """Take the place of an object of a harmless package, which is not even imported."""

    def __init__(self, *_: Any, **__: Any):
        super().__init__()

    def __setstate__(self, _: Any) -> None:
        """Keep nothing."""


def read_torch(path: Path) -> dict[str, np.ndarray]:
    """Read the state dictionary of a network; of a training checkpoint, see ``PLACES``.

    Raises:
      InputError: if PyTorch is missing, or the file is broken, holds no state dictionary, or holds
        objects that could run code.
    """
    torch = _import_torch()
    tensors = _find(_load(torch, path), torch.Tensor)
    if tensors is None:
        raise InputError(
            f"weights {path} holds no state dictionary: names and tensors, at the top or under one "
            f"of {', '.join(PLACES)}; save model.state_dict()"
        )
    for key, value in tensors.items():
        if not isinstance(value, torch.Tensor):
            raise InputError(
                f"weights {path}: {key} of its state dictionary is of type "
                f"{type(value).__name__}, not a tensor"
            )
    return {key: _to_numpy(tensor.detach()) for key, tensor in tensors.items()}


def write_torch(state_dict: Mapping[str, np.ndarray]) -> memoryview:
    """Return the content of a .pth file.

    Raises:
      InputError: if PyTorch is missing.
    """
    torch = _import_torch()
    buffer = io.BytesIO()
    torch.save({key: torch.tensor(value) for key, value in state_dict.items()}, buffer)
    return buffer.getbuffer()


def _load(torch: ModuleType, path: Path) -> Any:
    """Load with stand-ins for harmless objects; PyTorch itself refuses to run code."""
    stand_ins: dict[str, Any] = {}
    while True:
        allowed = [(value, name) for name, value in stand_ins.items()]
        try:
            with torch.serialization.safe_globals(allowed):
                return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:  # PyTorch's message advises to run the code
            found = re.search(r"GLOBAL (\S+) ", str(error))
            name = found[1] if found else ""
            if name.partition(".")[0] not in HARMLESS or name in stand_ins:
                what = f"objects of other types than tensors ({name})" if name else "no weights"
                raise InputError(
                    f"weights {path} holds {what}, and is not read, since such files can run "
                    "code; save model.state_dict() alone"
                ) from None
            stand_ins[name] = _StandIn
        except Exception as error:  # of many types, for a broken file
            raise InputError(
                f"weights {path} is damaged or cut off, or not a PyTorch file: "
                f"{type(error).__name__}"
            ) from error


def _find(content: Any, tensor: type) -> dict[str, Any] | None:
    """Return the first dictionary with tensors, at the top or in ``PLACES`` of ``PLACES``."""
    if not isinstance(content, dict):
        return None
    if any(isinstance(value, tensor) for value in content.values()):
        return content
    found = (_find(content[place], tensor) for place in PLACES if place in content)
    return next((tensors for tensors in found if tensors is not None), None)


def _to_numpy(tensor: Any) -> np.ndarray:
    """Return floats as float32, others as they are, so that they are noticed."""
    if tensor.is_quantized:
        return tensor.int_repr().numpy()
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def _import_torch() -> ModuleType:
    return import_package("torch", "resnest_jax[torch]")
