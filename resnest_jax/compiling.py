"""Options of the compiler for inference."""

from functools import cache

import jax


@cache
def compiler_options(platform: str | None = None) -> dict[str, str]:
    """Return the options that make inference fastest, for ``jax.jit(..., compiler_options=...)``.

    On CPU, matrix products are then done by Eigen, not by XLA:CPU's library YNN, which takes longer
    for most of those of a ResNeSt (``experiments/benchmark``); sums stay with YNN. There are none
    for other platforms, nor with a jaxlib that does not know the option.

    Args:
      platform: ``cpu``, ``cuda``, ``rocm`` or ``tpu``; None is JAX's default backend.
    """
    if (platform or jax.default_backend()) != "cpu":
        return {}
    options = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}
    try:
        jax.jit(lambda: 0, compiler_options=options).lower().compile()
    except jax.errors.JaxRuntimeError:
        return {}
    return options
