"""Helpers for tests, and a small run."""

import importlib.metadata
import importlib.util
import pathlib
import socket

import pytest
from ml_collections import ConfigDict

from resnest_jax.training.metric_writer import read_metrics

ROOT = pathlib.Path(__file__).parent.parent
# One worker runs the tests that share the fixture of this name.
with_whole_run = pytest.mark.xdist_group("whole run")


def xla_flags(devices: int) -> str:
    """Set the number of virtual devices, and compile fast rather than run fast."""
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    if importlib.metadata.version("jaxlib") < "0.11":
        flags += " --xla_cpu_use_fusion_emitters=false"  # half the time; later ones do not have it
        # Else a program from the cache may wait for ever, its devices in different sums.
        flags += " --xla_cpu_enable_concurrency_optimized_scheduler=false"
    return flags


def process_variables(count: int) -> list[dict[str, str]]:
    """Return the environment variables of each process of a run on this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    return [
        {
            "JAX_COORDINATOR_ADDRESS": address,
            "JAX_NUM_PROCESSES": str(count),
            "JAX_PROCESS_ID": str(index),
        }
        for index in range(count)
    ]


# Few parameters: a step takes milliseconds, compiling it a few seconds.
TINY = {
    "model.planes": (8, 8, 8, 8),
    "model.stem_width": 4,
    "batch_size": 240,
    "epochs": 2.0,
    "eval_every_epochs": 0.5,
    "log_every_steps": 2,
}


def losses_of(workdir) -> list[dict]:
    """Return the logged lines of training, without those of evaluations."""
    return [line for line in read_metrics(workdir) if "loss" in line]


def load_config(name: str, *argument: str) -> ConfigDict:
    """Return the config of a file in configs/."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "configs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(*argument)


def tiny_config(**overrides) -> ConfigDict:
    """Return a small digits recipe; ``__`` in the name of an override stands for a dot."""
    config = load_config("digits")
    overrides = {key.replace("__", "."): value for key, value in overrides.items()}
    config.update_from_flattened_dict(TINY | overrides)
    return config
