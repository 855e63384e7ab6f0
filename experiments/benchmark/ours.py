"""Our programs: inference as trained and folded, and the training step."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from experiments.timing import random_variables
from resnest_jax.models.folding import fold
from resnest_jax.tasks.classification.recipe import HEAD_ALONE
from resnest_jax.tasks.classification.task import Classification
from resnest_jax.training.optimizer import make_optimizer
from resnest_jax.training.run import Run, TrainOptions
from resnest_jax.training.state import create_state
from resnest_jax.training.step import make_train_step
from resnest_jax.training.task import Batches


class Program(NamedTuple):
    """A call that waits for its result, and what making it took.

    Attributes:
      compile_seconds: with nothing in the compilation cache.
      cached_seconds: once more, from the cache, see ``time_cached``.
      temporary_mib: memory beside the arguments.
      compiled: the executable.
      compile: makes it anew; returns the seconds and the executable.
    """

    call: Callable[[], Any]
    compile_seconds: float | None = None
    cached_seconds: float | None = None
    temporary_mib: float | None = None
    compiled: Any = None
    compile: Callable[[], tuple[float, Any]] | None = None


def compile_program(function: Callable, *args, **jit_options) -> Program:
    """The function compiled for the arguments, with which it is called."""

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
    """With the seconds of compiling from the cache; None if JAX stores nothing that is so quick."""
    if program.compile_seconds <= jax.config.jax_persistent_cache_min_compile_time_secs:
        return program
    return program._replace(cached_seconds=program.compile()[0])


def inference(model, images: jax.Array) -> dict[str, Program]:
    """Name -> program, for the model as trained and folded."""
    variables = random_variables(model, images)
    return {
        "as trained": compile_program(model.apply, variables, images),
        "folded": folded(model, variables, images),
    }


def folded(model, variables: dict, images: jax.Array) -> Program:
    """Inference with the batch norms folded into the convolutions."""
    folded_model, folded_variables = fold(model, variables)
    return compile_program(folded_model.apply, folded_variables, images)


def training(model, images: jax.Array) -> dict[str, Program]:
    """The trainer's step with Nesterov SGD, on the same batch again and again.

    Besides the whole network, with the head alone trained and frozen batch norms.
    """
    return {
        "as trained": train_step(model, images),
        "head alone": train_step(model.clone(norm="frozen"), images, freeze=HEAD_ALONE),
    }


def train_step(model, images: jax.Array, freeze: str = "") -> Program:
    """The trainer's step; ``freeze`` is a regex of the parameters that are not trained."""
    optimizer = make_optimizer(
        lambda step: 1e-3,
        name="sgd",
        momentum=0.9,
        nesterov=True,
        weight_decay=0.0,
        freeze=freeze,
    )
    batch_size = len(images)
    options = TrainOptions(
        seed=0,
        total_steps=1,
        steps_per_epoch=1.0,
        batch_size=batch_size,
        log_every=1,
        eval_every=1,
        freeze=freeze,
    )
    task = Classification(model, model.num_classes, images.shape[1])
    no_data = cast(Batches, None)  # which a step does not need
    run = Run(task, no_data, optimizer, lambda step: 1e-3, options)
    state = create_state(random_variables(model, images), optimizer)
    batch = {"image": images, "label": jnp.arange(batch_size) % model.num_classes}
    return compile_program(make_train_step(run), state, batch)
