"""The platform that a program is compiled for, which selects the form of some operations."""

import jax

from resnest_jax.errors import InputError

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
ONNX = "onnx"  # not for running: only convolutions and windows, which ONNX has operators for


def target(platform: str | None) -> str:
    """Return the platform; None is JAX's default backend at the time of the call."""
    return platform or jax.default_backend()


def on_cpu(platform: str | None) -> bool:
    """Return whether the target platform is CPU."""
    return target(platform) == "cpu"


def check_platform(platform: str | None) -> None:
    """Raise InputError if the platform is unknown."""
    if platform is not None and platform not in (*PLATFORMS, ONNX):
        raise InputError(
            f"model field platform must be None or one of {(*PLATFORMS, ONNX)}; got {platform!r}"
        )
