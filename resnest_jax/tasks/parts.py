"""Result of the recipe of a task."""

from collections.abc import Callable
from typing import NamedTuple

from resnest_jax.training.task import Batches, Task, Variables


class Parts(NamedTuple):
    """The parts of a run that depend on its task.

    Attributes:
      pretrained, new_modules: see ``training.run.Run``.
      freeze: regex of the paths of parameters that the task freezes; empty: none.
      palette: colour of each class in pictures, if the task has any.
      layers: regexes that select the parameters of each layer, from the first to the last.
    """

    task: Task
    batches: Batches
    pretrained: Callable[[], Variables] | None = None
    new_modules: tuple[str, ...] = ()
    freeze: str = ""
    layers: tuple[str, ...] = ()
    palette: tuple[tuple[int, int, int], ...] | None = None
