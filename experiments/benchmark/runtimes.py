"""Programs of ONNX Runtime and OpenVINO: both read our export, with folded batch norms."""

import importlib.util
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from experiments.benchmark.ours import Program
from experiments.timing import CORES

PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")

Made = tuple[str, Callable[[], np.ndarray]]  # the device; a call that returns the logits


def programs(model, variables: dict, images: jax.Array) -> dict[str, Program]:
    """Make the programs, float32; a note is printed for each that is not possible."""
    makers = {name: make for name, make in MAKERS.items() if not _skipped(name, model.dtype)}
    if not makers:
        return {}
    from resnest_jax.weights import onnx

    content = onnx.export(model, variables, images.shape[1:3], {}).SerializeToString()
    arrays = {"images": np.ascontiguousarray(np.moveaxis(np.asarray(images), -1, 1))}
    made = {}
    for name, (_, make) in makers.items():
        begun = time.perf_counter()
        device, call = make(content, arrays)
        made[f"{name}, {device}"] = Program(call, time.perf_counter() - begun)
    return made


def _skipped(name: str, dtype: Any) -> bool:
    """Print why the programs of a runtime are not possible, if they are not."""
    package, _ = MAKERS[name]
    reasons = [
        f"{needed} is not installed"
        for needed in ("onnx", package)
        if not importlib.util.find_spec(needed)
    ]
    if dtype != np.float32:
        reasons.append("exports are float32")
    if package == "openvino" and jax.default_backend() != "cpu":
        reasons.append("it is timed on CPUs alone")
    if reasons:
        print(f"{name} is skipped: {', '.join(reasons)}")
    return bool(reasons)


def _onnx_runtime(content: bytes, arrays: dict[str, np.ndarray]) -> Made:
    import onnxruntime

    present = onnxruntime.get_available_providers()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = CORES
    # Threads that spin while they wait would slow the other programs; here they gain nothing.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    providers = [name for name in PROVIDERS if name in present]
    session = onnxruntime.InferenceSession(content, options, providers=providers)
    provider = session.get_providers()[0].removesuffix("ExecutionProvider")
    return provider, lambda: session.run(None, arrays)[0]


def _openvino(content: bytes, arrays: dict[str, np.ndarray]) -> Made:
    # Without this, the import forks a process, which may block JAX, to report the use to Intel.
    sys.modules["openvino_telemetry"] = None
    import openvino

    core = openvino.Core()
    network = core.read_model(content)
    network.reshape({name: list(array.shape) for name, array in arrays.items()})
    settings = {
        "PERFORMANCE_HINT": "LATENCY",  # all threads work on one call
        "INFERENCE_NUM_THREADS": CORES,
        "INFERENCE_PRECISION_HINT": "f32",  # bfloat16 by default where the processor has it
    }
    compiled = core.compile_model(network, "CPU", settings)
    return "CPU", lambda: compiled(arrays, share_inputs=True)[0]


MAKERS = {"ONNX Runtime": ("onnxruntime", _onnx_runtime), "OpenVINO": ("openvino", _openvino)}
