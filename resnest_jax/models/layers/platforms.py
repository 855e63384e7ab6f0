"""The platform that a program is compiled for, which decides what form some operations take."""

import jax

from resnest_jax.errors import InputError

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def on_cpu(platform: str | None) -> bool:
    """Whether a program for the platform runs on CPU; None is jax's default at the time."""
    return (platform or jax.default_backend()) == "cpu"


def check_platform(platform: str | None) -> None:
    """Raise an InputError if there is no such platform."""
    if platform is not None and platform not in PLATFORMS:
        raise InputError(
            f"model field platform must be None or one of {PLATFORMS}; got {platform!r}"
        )
