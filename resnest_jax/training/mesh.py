"""Devices: one mesh axis, the batch split over it, the state replicated or in part split."""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from resnest_jax.errors import InputError
from resnest_jax.training.state import TrainState


def make_mesh() -> Mesh:
    """All devices of all processes along one axis, ``data``."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of what every device has a copy of."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of a batch: its first axis split over the mesh."""
    return NamedSharding(mesh, PartitionSpec("data"))


def state_sharding(state: TrainState, mesh: Mesh, *, shard_optimizer: bool) -> Any:
    """Shardings of a state, abstract or not: replicated, all of it or all but the optimiser's.

    The optimiser's arrays and the moving average are split (as in ZeRO, stage 1, arXiv
    1910.02054) along their longest axis that the devices divide, if there is one.
    """

    def split(leaf):
        axes = [axis for axis, size in enumerate(leaf.shape) if size % mesh.size == 0]
        if not axes:
            return replicated(mesh)
        axis = max(axes, key=lambda axis: leaf.shape[axis])
        return NamedSharding(mesh, PartitionSpec(*[None] * axis, "data"))

    whole = jax.tree.map(lambda _: replicated(mesh), state)
    if not shard_optimizer:
        return whole
    opt_state, ema = jax.tree.map(split, (state.opt_state, state.ema))
    return whole.replace(opt_state=opt_state, ema=ema)


def shard(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's part of a batch -> the global batch, its first axis split over the mesh."""
    return {
        name: jax.make_array_from_process_local_data(batch_sharding(mesh), array)
        for name, array in batch.items()
    }


def check_batch_size(batch_size: int, accumulate: int) -> None:
    """Raise InputError unless every device gets equally many images a part, at least one."""
    devices = jax.device_count()
    if accumulate < 1:
        raise InputError(f"parallel.accumulate must be at least 1; got {accumulate}")
    if batch_size < 1 or batch_size % (devices * accumulate):
        times = f" times parallel.accumulate {accumulate}" if accumulate > 1 else ""
        raise InputError(
            f"batch_size {batch_size} must be a positive multiple of the {devices} devices{times}"
        )
