"""PyTorch's programs of the same architectures, from timm."""

import ctypes
import re
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import timm
import torch

from experiments.benchmark import agreement
from experiments.benchmark.ours import Program
from experiments.benchmark.report import EAGER
from resnest_jax.errors import InputError

COMPILED, FROZEN = "compiled", "compiled and frozen"

REFERENCES = Path("/proc/self/clear_refs")  # of Linux

NAMES = {
    "resnest14": "resnest14d",
    "resnest26": "resnest26d",
    "resnest50": "resnest50d",
    "resnest101": "resnest101e",
    "resnest200": "resnest200e",
    "resnest269": "resnest269e",
    "resnest50_fast_4s2x40d": "resnest50d_4s2x40d",
    "resnest50_fast_1s4x24d": "resnest50d_1s4x24d",
}
# Other members of the family, for which timm has no name.
FAST = re.compile(r"resnest50_fast_([1-9]\d*)s(\d+)x(\d+)d")
FORMATS = {"NCHW": torch.contiguous_format, "channels last": torch.channels_last}
Shape = tuple[int, ...]  # of the images, (B, H, W, C)


def both_layouts(
    name: str,
    state: dict[str, np.ndarray],
    images: np.ndarray,
    expected: np.ndarray | None,
    dtype: str,
    device: str,
    compiled: bool,
) -> dict[str, Program]:
    """Return name -> program: eager, compiled, and for inference compiled with frozen weights.

    There is none if timm lacks the architecture.

    Args:
      state: weights, by timm's names.
      images: (B, H, W, 3).
      expected: our logits; without them the programs are training steps.

    Raises:
      InputError: if the logits differ from the expected ones.
    """
    if name not in NAMES and not FAST.fullmatch(name):
        return {}
    make, made = _train_step if expected is None else _inference, {}
    ways = [EAGER, *[COMPILED, *[FROZEN] * (make is _inference)] * compiled]
    for layout, memory_format in FORMATS.items():
        for way in ways:
            title = f"PyTorch {way}, {layout}"
            if way != EAGER:
                print(f"compiling {title}", flush=True)
            model = create(name)
            load(model, state)
            x = torch.from_numpy(images).to(device, getattr(torch, dtype))
            function = make(*_placed(model, x, memory_format), way)
            made[title] = program(function, way)
            if expected is not None:
                agreement.check(title, function().float().cpu().numpy(), expected, dtype)
    return made


def channels_last(
    shapes: dict[str, Shape], dtype: str, device: str, compiled: bool
) -> dict[tuple[str, str], Program]:
    """Return (name, way) -> inference: eager, and compiled with frozen weights.

    Args:
      shapes: shape of the images by name of the model in timm.
    """
    made = {}
    for name, shape in shapes.items():
        x = torch.randn(shape, device=device, dtype=getattr(torch, dtype))
        for way in [EAGER, *[FROZEN] * compiled]:
            function = _inference(*_placed(create(name), x, torch.channels_last), way)
            made[name, way] = program(function, way)
    return made


def _placed(
    model: torch.nn.Module, images: torch.Tensor, layout: torch.memory_format
) -> tuple[torch.nn.Module, torch.Tensor]:
    """Return the model and the images (B, H, W, 3) in a layout, where the images are."""
    x = images.permute(0, 3, 1, 2).contiguous(memory_format=layout)
    return model.to(x.device, x.dtype, memory_format=layout), x


def create(name: str) -> torch.nn.Module:
    """Create a model by our name or timm's."""
    if name not in NAMES and (found := FAST.fullmatch(name)):
        return _of_fields(*map(int, found.groups()))
    return timm.create_model(NAMES.get(name, name))


def _of_fields(radix: int, cardinality: int, base_width: int) -> torch.nn.Module:
    from timm.models.resnest import ResNestBottleneck
    from timm.models.resnet import ResNet

    return ResNet(
        ResNestBottleneck,
        [3, 4, 6, 3],
        stem_type="deep",
        stem_width=32,
        avg_down=True,
        base_width=base_width,
        cardinality=cardinality,
        block_args={"radix": radix, "avd": True, "avd_first": True},
    )


def load(model: torch.nn.Module, state: dict[str, np.ndarray]) -> None:
    """Give a network all its weights.

    Raises:
      InputError: if the names are others than those of the network.
    """
    weights = {key: torch.from_numpy(np.array(value)) for key, value in state.items()}
    missing, unknown = model.load_state_dict(weights, strict=False)
    if unknown or any("num_batches" not in key for key in missing):
        raise InputError(f"PyTorch's network has other entries: {missing[:3]} {unknown[:3]}")


def _inference(model: torch.nn.Module, x: torch.Tensor, way: str) -> Callable:
    model = model.eval()

    def infer():
        with torch.no_grad():
            return model(x)

    if way != EAGER:
        infer = torch.compile(infer, options={"freezing": way == FROZEN})
    return infer


def _train_step(model: torch.nn.Module, x: torch.Tensor, way: str) -> Callable:
    model = model.train()
    labels = torch.arange(len(x), device=x.device) % 1000
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9, nesterov=True)
    forward = model if way == EAGER else torch.compile(model)

    def step():
        torch.nn.functional.cross_entropy(forward(x), labels).backward()
        optimizer.step()
        optimizer.zero_grad()  # at the end: gradients are temporary

    return step


def program(function: Callable, way: str) -> Program:
    """Make the program of a function: its first call compiles, unless it is eager."""
    call = synchronized(function)
    begun = time.perf_counter()
    call()
    seconds = None if way == EAGER else time.perf_counter() - begun
    return Program(call, seconds, temporary_mib=_temporary_mib(call))


def synchronized(function: Callable) -> Callable[[], None]:
    """Make a call of a function that waits for the GPU."""

    def call() -> None:
        function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return call


def _temporary_mib(call: Callable) -> float | None:
    """Return the temporary memory of a call: on CPU the growth of the process, on Linux alone."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    if not REFERENCES.exists():
        return None
    ctypes.CDLL(None).malloc_trim(0)  # what earlier calls freed
    REFERENCES.write_text("5")  # the peak is forgotten
    before = _resident("VmRSS")
    call()
    return (_resident("VmHWM") - before) / 2**10


def _resident(name: str) -> int:
    """Return the memory of the process in KiB: now or its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))
