"""The device mesh: one axis, over which batches are sharded."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from resnest_jax.errors import InputError


def make_mesh() -> Mesh:
    """Make a mesh of all devices of all processes, with one axis ``data``."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def make_local_mesh(devices: int | None = None) -> Mesh:
    """Make a mesh of the devices of this process, or the first ones, with one axis ``data``."""
    return Mesh(np.array(jax.local_devices()[:devices]), ("data",), axis_types=(AxisType.Auto,))


def platform_of(mesh: Mesh) -> str:
    """Return the platform of the devices of a mesh."""
    return mesh.devices.flat[0].platform


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the replicated sharding."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of a batch: its first axis over the mesh."""
    return NamedSharding(mesh, PartitionSpec("data"))


def shard(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Make the global batch, first axis sharded over the mesh, from this process's part."""
    return {
        name: jax.make_array_from_process_local_data(batch_sharding(mesh), array)
        for name, array in batch.items()
    }


def check_batch_size(batch_size: int, accumulate: int, mesh: Mesh | None = None) -> None:
    """Raise InputError unless it is a positive multiple of devices x accumulate."""
    devices = jax.device_count() if mesh is None else mesh.size
    if accumulate < 1:
        raise InputError(f"parallel.accumulate must be at least 1; got {accumulate}")
    if batch_size < 1 or batch_size % (devices * accumulate):
        times = f" times parallel.accumulate {accumulate}" if accumulate > 1 else ""
        raise InputError(
            f"batch_size {batch_size} must be a positive multiple of the {devices} devices{times}"
        )


def round_up(batch_size: int, mesh: Mesh | None = None) -> int:
    """Return the next batch size that the devices divide, all of them or those of a mesh."""
    devices = jax.device_count() if mesh is None else mesh.size
    return -(-batch_size // devices) * devices
