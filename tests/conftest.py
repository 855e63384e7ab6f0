"""Give each test eight virtual CPU devices; make rank promotion an error."""

import os

import pytest
from helpers import ROOT, tiny_config, xla_flags

# Before jax starts.
os.environ.setdefault("XLA_FLAGS", xla_flags(8))
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Shared by all processes, because the commands run many times.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".pytest_cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")

import jax

from resnest_jax import dry_run, runs
from resnest_jax.training import loop
from resnest_jax.training.evaluation import make_evaluate
from resnest_jax.training.step import jit_train_step

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory):
    """A finished run of the tiny recipe, to read from: its directory and its summary."""
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, runs.train(tiny_config(), workdir)


def first_of(make):
    """Return a function that returns the first result of ``make`` at every call."""
    made = []

    def first(run):
        if not made:
            made.append(make(run))
        return made[0]

    return first


@pytest.fixture(scope="module")
def compiled_once():
    """Equal runs share the compiled step and evaluation: tracing them takes most of the time."""
    step = first_of(jit_train_step)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "jit_train_step", step)
        patch.setattr(dry_run, "jit_train_step", step)
        patch.setattr(loop, "make_evaluate", first_of(make_evaluate))
        yield


def pytest_xdist_auto_num_workers() -> int:
    """One worker more than cores: half of the time is spent waiting for commands."""
    return len(os.sched_getaffinity(0)) + 1 if hasattr(os, "sched_getaffinity") else 2
