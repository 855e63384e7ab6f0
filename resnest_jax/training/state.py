"""The state of a run: its content, its sharding and its start."""

from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from resnest_jax.errors import InputError
from resnest_jax.training.mesh import replicated
from resnest_jax.training.run import Run
from resnest_jax.training.task import PyTree, Variables


class TrainState(flax.struct.PyTreeNode):
    """Everything that a step changes; ``step`` counts the steps taken, int32.

    ``ema`` is the moving average of ``{"params", "batch_stats"}``, or None.
    """

    step: jax.Array
    params: PyTree
    batch_stats: PyTree
    opt_state: PyTree
    ema: PyTree | None = None

    @property
    def variables(self) -> dict[str, PyTree]:
        """Variables to evaluate: the moving average if there is one."""
        return self.ema or {"params": self.params, "batch_stats": self.batch_stats}


def create_state(
    variables: Variables, optimizer: optax.GradientTransformation, *, ema: bool = False
) -> TrainState:
    """Create the state before the first step."""
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    average = {"params": params, "batch_stats": batch_stats} if ema else None
    return TrainState(
        jnp.zeros((), jnp.int32), params, batch_stats, optimizer.init(params), average
    )


def state_sharding(state: TrainState, mesh: Mesh, *, shard_optimizer: bool) -> Any:
    """Return the shardings of a state, abstract or not: replicated, or in part sharded.

    ``shard_optimizer`` shards the optimiser's arrays and the moving average (as in ZeRO, stage 1,
    arXiv 1910.02054) along their longest axis that the number of devices divides, if there is one.
    """

    def split(leaf: jax.ShapeDtypeStruct) -> NamedSharding:
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


def abstract_state(run: Run) -> TrainState:
    """Return shapes, dtypes and shardings of the state."""
    state = jax.eval_shape(partial(_create, run), run.abstract_variables)
    shardings = state_sharding(state, run.mesh, shard_optimizer=run.options.shard_optimizer)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        state,
        shardings,
    )


def initial_state(run: Run) -> TrainState:
    """Create the sharded state before the first step, from new or loaded variables.

    Raises:
      InputError: if the loaded variables do not fit the task.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(run))
    # Steps fold in 0, 1, ...; the last number is free.
    rng = jax.random.fold_in(jax.random.key(run.options.seed), 2**31 - 1)
    if run.pretrained is None:
        create = jax.jit(lambda rng: _create(run, run.task.init(rng)), out_shardings=shardings)
        return create(rng)
    variables = complete_variables(run, run.pretrained(), rng)
    return jax.jit(partial(_create, run), out_shardings=shardings)(variables)


def _create(run: Run, variables: Variables) -> TrainState:
    return create_state(variables, run.optimizer, ema=run.options.ema_decay > 0)


def complete_variables(run: Run, loaded: Variables, rng: jax.Array) -> Variables:
    """Complete loaded variables with new ones for the modules in ``run.new_modules``.

    Raises:
      InputError: if names are missing or unknown, or a shape differs.
    """
    found: dict[tuple[str, ...], Any] = flatten_dict(dict(loaded))
    wanted: dict[tuple[str, ...], Any] = flatten_dict(dict(run.abstract_variables))
    new = {path for path in wanted if path[1] in run.new_modules}
    problems = {
        "missing": wanted.keys() - found.keys() - new,
        "unknown": found.keys() - wanted.keys(),
        "of another shape": {
            path
            for path in wanted.keys() & found.keys()
            if np.shape(found[path]) != wanted[path].shape
        },
    }
    for problem, paths in problems.items():
        if paths:
            names = sorted("/".join(path) for path in paths)
            raise InputError(
                f"pretrained.weights: {len(names)} variables are {problem}: "
                f"{', '.join(names[:3])}{', ...' if len(names) > 3 else ''}; the weights must be "
                "of the same model and fields"
            )
    missing = [path for path in new if path not in found]
    if missing:
        made = flatten_dict(dict(jax.jit(run.task.init)(rng)))
        found |= {path: made[path] for path in missing}
    return unflatten_dict(found)
