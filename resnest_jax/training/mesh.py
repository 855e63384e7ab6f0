"""Devices: one mesh axis, the state replicated over it, the batch split."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from resnest_jax.errors import InputError


def make_mesh() -> Mesh:
    """All devices of all processes along one axis, ``data``."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of the state: a copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def shard(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's part of a batch -> the global batch, its first axis split over the mesh."""
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    return {
        name: jax.make_array_from_process_local_data(sharding, array)
        for name, array in batch.items()
    }


def check_batch_size(batch_size: int) -> None:
    """Raise InputError unless every device gets equally many images, at least one."""
    devices = jax.device_count()
    if batch_size < 1 or batch_size % devices:
        raise InputError(
            f"batch_size {batch_size} must be a positive multiple of the {devices} devices"
        )
