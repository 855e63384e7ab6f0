"""Our programs: inference as trained and folded, and the training step."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from experiments.timing import random_variables
from resnest_jax.compiling import compiler_options
from resnest_jax.models.folding import fold
from resnest_jax.tasks.classification.recipe import HEAD_ALONE
from resnest_jax.tasks.classification.task import Classification
from resnest_jax.training.optimizer import make_optimizer
from resnest_jax.training.run import Run, TrainOptions
from resnest_jax.training.state import create_state
from resnest_jax.training.step import make_train_step
from resnest_jax.training.task import Batch, Batches, Task


class Program(NamedTuple):
    """A call that waits for its result, and what it cost to make.

    Attributes:
      compile_seconds: with an empty compilation cache.
      cached_seconds: from the cache, see ``time_cached``.
      temporary_mib: temporary memory, without the arguments.
      compiled: the executable.
      compile: compiles it again; returns the seconds and the executable.
    """

    call: Callable[[], Any]
    compile_seconds: float | None = None
    cached_seconds: float | None = None
    temporary_mib: float | None = None
    compiled: Any = None
    compile: Callable[[], tuple[float, Any]] | None = None


def compile_program(function: Callable, *args, **jit_options) -> Program:
    """Compile a function for its arguments; the program calls it with them."""

    def compile_() -> tuple[float, Any]:
        jax.clear_caches()
        begun = time.perf_counter()
        compiled = jax.jit(function, **jit_options).lower(*args).compile()
        return time.perf_counter() - begun, compiled

    seconds, compiled = compile_()
    memory = compiled.memory_analysis()
    return Program(
        lambda: jax.block_until_ready(compiled(*args)),
        seconds,
        temporary_mib=memory.temp_size_in_bytes / 2**20 if memory else None,
        compiled=compiled,
        compile=compile_,
    )


def time_cached(program: Program) -> Program:
    """Add the seconds of compiling from JAX's cache, if the program is in it."""
    least = jax.config.jax_persistent_cache_min_compile_time_secs
    if not program.compile or program.compile_seconds <= least:
        return program
    return program._replace(cached_seconds=program.compile()[0])


def inference(model, variables: dict, *inputs: jax.Array) -> dict[str, Program]:
    """Return name -> program: the model as trained, and folded."""
    return {
        "as trained": infer_program(model.apply, variables, *inputs),
        "folded": folded(model, variables, *inputs),
    }


def folded(model, variables: dict, *inputs: jax.Array) -> Program:
    """Compile inference with the batch norms folded into the convolutions."""
    folded_model, folded_variables = fold(model, variables)
    return infer_program(folded_model.apply, folded_variables, *inputs)


def infer_program(function: Callable, *args) -> Program:
    """Compile inference as evaluation does, with its compiler options."""
    return compile_program(function, *args, compiler_options=compiler_options())


def training(model, images: jax.Array, head_alone: bool) -> dict[str, Program]:
    """Return name -> program: the trainer's step with Nesterov SGD, always on the same batch.

    One trains the whole network; ``head_alone`` adds one of the head, with frozen batch norms.
    """
    made = {"as trained": training_step(model, images)}
    if head_alone:
        made["head alone"] = training_step(model.clone(norm="frozen"), images, HEAD_ALONE)
    return made


def training_step(model, images: jax.Array, freeze: str = "") -> Program:
    """Compile the trainer's step of a classifier, see ``train_step``."""
    batch = {"image": images, "label": jnp.arange(len(images)) % model.num_classes}
    task = Classification(model, model.num_classes, images.shape[1])
    return train_step(task, batch, random_variables(model, images), freeze)


def train_step(task: Task, batch: Batch, variables: dict, freeze: str = "") -> Program:
    """Compile the trainer's step; ``freeze`` is a regex of parameters that are not trained."""
    optimizer = make_optimizer(
        lambda step: 1e-3,
        name="sgd",
        momentum=0.9,
        nesterov=True,
        weight_decay=0.0,
        freeze=freeze,
    )
    options = TrainOptions(
        seed=0,
        total_steps=1,
        steps_per_epoch=1.0,
        batch_size=len(batch["image"]),
        log_every=1,
        eval_every=1,
        freeze=freeze,
    )
    no_data = cast(Batches, None)  # a step does not need it
    run = Run(task, no_data, optimizer, lambda step: 1e-3, options)
    return compile_program(make_train_step(run), create_state(variables, optimizer), batch)
