"""Options of the compiler: what they change, and where there are none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import resnest_jax
from resnest_jax.compiling import compiler_options


@pytest.mark.parametrize("platform", ["cuda", "rocm", "tpu"])
def test_other_platforms_have_none(platform):
    assert compiler_options(platform) == {}


def test_an_option_that_jaxlib_does_not_know_is_left_out(monkeypatch):
    def fail(*args, **kwargs):
        raise jax.errors.JaxRuntimeError("INVALID_ARGUMENT: No such compile option")

    monkeypatch.setattr(jax, "jit", fail)
    assert compiler_options.__wrapped__("cpu") == {}


def test_on_cpu_products_are_not_left_to_ynn_and_logits_stay():
    model = resnest_jax.create_model("resnest14", num_classes=10)
    images = jax.random.normal(jax.random.key(1), (2, 64, 64, 3))
    variables = jax.jit(model.init)(jax.random.key(0), images)
    lowered = jax.jit(model.apply).lower(variables, images)
    default = lowered.compile()
    compiled = lowered.compile(compiler_options=compiler_options("cpu"))
    # One whose results are only summed goes along with the sum.
    assert products_of_ynn(compiled) <= 1 < 10 < products_of_ynn(default)
    expected = np.asarray(default(variables, images))
    difference = jnp.abs(compiled(variables, images) - expected).max()
    assert difference < 1e-5 * np.abs(expected).max()


def products_of_ynn(compiled: jax.stages.Compiled) -> int:
    """Count the products in the bodies of fusions for YNN."""
    text = compiled.as_text()
    names = [line.split("calls=%")[1] for line in text.splitlines() if "__ynn_fusion" in line]
    bodies = (text.split(f"\n%{name.split(',')[0]} ")[1].split("\n}")[0] for name in names)
    return sum(" dot(" in body for body in bodies)
