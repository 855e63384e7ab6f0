"""Programs of a classifier: ours, and those of other libraries with the same weights."""

import jax
import numpy as np

from experiments.benchmark import agreement, ours, runtimes, torch_process
from experiments.benchmark.ours import Program
from experiments.timing import random_variables
from resnest_jax.models.resnest import ResNeSt
from resnest_jax.weights.torch_names import to_torch


def programs(
    name: str,
    model: ResNeSt,
    images: jax.Array,
    *,
    train: bool,
    others: bool,
    torch: bool,
    compiled: bool,
    head_alone: bool = False,
) -> dict[str, Program]:
    """Return name -> program: inference, or training steps, which only we and PyTorch have.

    Args:
      name: of the model.
      others: programs of the other libraries that are installed too.
      torch: PyTorch's among them, with ``compiled`` also compiled.
      head_alone: also our step that trains only the head.

    Raises:
      InputError: if the logits differ; those of training are not compared.
    """
    variables, dtype = random_variables(model, images), np.dtype(model.dtype).name
    expected = None
    if train:
        made = ours.training(model, images, head_alone)
    else:
        made = ours.inference(model, variables, images)
        if others:
            made |= runtimes.programs(model, variables, images)
        results = {title: np.asarray(p.call(), np.float32) for title, p in made.items()}
        expected = results["as trained"]
        for title, found in results.items():
            agreement.check(f"the result of {title}", found, expected, dtype)
    if others and torch:
        made |= torch_process.programs(
            "both_layouts",
            name=name,
            state=to_torch(variables, model),
            images=np.asarray(images),
            expected=expected,
            dtype=dtype,
            compiled=compiled,
        )
    return made
