"""Our programs: inference as trained and folded, and the training step."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.timing import random_variables
from resnest_jax.models.folding import fold
from resnest_jax.training.state import create_state, make_train_step


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
    """The training step of Nesterov SGD, on the same batch again and again."""
    labels = jnp.arange(images.shape[0]) % model.num_classes

    def loss_fn(params, batch_stats, batch, rng, progress):
        logits, updates = model.apply(
            {"params": params, "batch_stats": batch_stats},
            batch["images"],
            train=True,
            progress=progress,
            mutable=["batch_stats"],
            rngs={"dropout": rng},
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"])
        return losses.mean(), updates["batch_stats"]

    optimizer = optax.sgd(1e-3, 0.9, nesterov=True)
    state = create_state(random_variables(model, images), optimizer)
    step = make_train_step(loss_fn, optimizer, seed=0, total_steps=1)
    return {"as trained": compile_program(step, state, {"images": images, "labels": labels})}
