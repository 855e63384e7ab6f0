"""A run: a task, its data, an optimiser and the options of the loop."""

import dataclasses
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import jax
import optax
from jax.sharding import Mesh

from resnest_jax.training.mesh import make_mesh
from resnest_jax.training.task import Batches, Task, Variables
from resnest_jax.training.tracker import Tracker


class TrainOptions(NamedTuple):
    """Options of the training loop; lengths in steps.

    Attributes:
      save_every: save a checkpoint every N steps and at evaluations; 0: only at evaluations.
      patience: evaluations in a row without a better headline metric that end the run; 0: never.
      ema_decay: decay of the moving average of the variables; 0: no average.
      accumulate: parts of a batch that go through the network one after another.
      shard_optimizer: shard the optimiser's state over the devices.
      norm_groups: parts of a batch, each with its own batch statistics.
      freeze: regex of the paths of parameters that are not trained; empty: none.
      recompute_batch_norm: training batches over which the statistics of batch norms are averaged
        after the last step; 0: they stay moving averages.
    """

    seed: int
    total_steps: int
    steps_per_epoch: float
    batch_size: int
    log_every: int
    eval_every: int
    save_every: int = 0
    patience: int = 0
    ema_decay: float = 0.0
    accumulate: int = 1
    shard_optimizer: bool = False
    norm_groups: int = 1
    freeze: str = ""
    recompute_batch_norm: int = 0


@dataclasses.dataclass(frozen=True)
class Run:
    """Everything that training needs.

    Attributes:
      mesh: all devices of all processes along one axis.
      pretrained: loads the initial variables, without those of ``new_modules``; None: all are new.
      notes: lines to print at start.
      tracker: opens the run of a workdir in a tracker that gets the metrics; None: no tracker.
      palette: RGB colour of each class, 0 to 255, that predictions are drawn in; None: none.
      new_modules: top-level modules that are new even if the others are pretrained.
    """

    task: Task
    batches: Batches
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    options: TrainOptions
    mesh: Mesh = dataclasses.field(default_factory=make_mesh)
    pretrained: Callable[[], Variables] | None = None
    new_modules: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    tracker: Callable[[Path], Tracker] | None = None
    palette: tuple[tuple[int, int, int], ...] | None = None

    @cached_property
    def abstract_variables(self) -> Variables:
        """Shapes and dtypes of the task's variables; tracing a model for them takes seconds."""
        return jax.eval_shape(self.task.init, jax.random.key(0))
