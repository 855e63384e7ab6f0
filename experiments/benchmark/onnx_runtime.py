"""ONNX Runtime's program, from the export with folded batch norms."""

import time

import jax
import numpy as np

from experiments.benchmark.ours import Program
from experiments.timing import random_variables

PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")


def programs(model, images: jax.Array) -> dict[str, Program]:
    """Make the program for float32; without the packages a note is printed and there is none."""
    try:
        import onnxruntime

        from resnest_jax.weights import onnx
    except ImportError as error:
        print(f"ONNX Runtime is skipped: {error}")
        return {}
    if model.dtype != np.float32:
        print("ONNX Runtime is skipped: exports are float32")
        return {}
    variables = random_variables(model, images)
    content = onnx.export(model, variables, images.shape[1:3], {}).SerializeToString()
    present = onnxruntime.get_available_providers()
    providers = [name for name in PROVIDERS if name in present]
    options = onnxruntime.SessionOptions()
    # Threads that spin while they wait would slow the other programs; here they gain nothing.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    begun = time.perf_counter()
    session = onnxruntime.InferenceSession(content, options, providers=providers)
    seconds = time.perf_counter() - begun
    inputs = {"images": np.ascontiguousarray(np.moveaxis(np.asarray(images), -1, 1))}
    provider = session.get_providers()[0].removesuffix("ExecutionProvider")
    return {f"ONNX Runtime, {provider}": Program(lambda: session.run(None, inputs), seconds)}
