"""Linear functions with a hand-written transpose, for both modes of differentiation.

With ``jax.custom_vjp`` a hand-written backward pass has no forward mode. A ``jax.custom_jvp`` rule
that ends in ``tangent_of`` has both, and compiles to the same program.
``jax.custom_derivatives.linear_call`` would do, but has no ``vmap`` and no second derivative.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache, reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

_linear = Primitive("linear")


def linear(function: Callable, transpose: Callable, residuals: Sequence, x: jax.Array) -> jax.Array:
    """Return ``function(*residuals, x)``, which is linear in x, with this transpose.

    The transpose is ``transpose(*residuals, dy)``; derivatives for the residuals are those of JAX.
    Neither may use traced arrays other than its arguments.
    """
    return _linear.bind(*residuals, x, function=function, transpose=transpose)


def tangent_of(y: jax.Array, *parts: tuple[Callable, Callable, Sequence, Any]) -> jax.Array:
    """Return the tangent of y, the sum of ``function(*residuals, dx)`` over the parts.

    A part is ``function, transpose, residuals, dx``, see ``linear``; dx may be a symbolic zero.
    """
    tangents = [linear(*part) for part in parts if not isinstance(part[-1], SymbolicZero)]
    return reduce(jnp.add, tangents) if tangents else jnp.zeros_like(y)


@_linear.def_impl
def _call(*args: jax.Array, function: Callable, transpose: Callable) -> jax.Array:
    return function(*args)


@_linear.def_abstract_eval
@lru_cache(maxsize=32)  # of the same types again for the tangent and for the transpose
def _type(*types: Any, function: Callable, transpose: Callable) -> Any:
    return jax.make_jaxpr(function)(*types).out_avals[0]


def _jvp(primals: tuple, tangents: tuple, **functions: Callable) -> tuple:
    *residuals, x = primals
    *changes, dx = tangents
    y = _linear.bind(*primals, **functions)
    parts = []
    if type(dx) is not ad.Zero:
        parts.append(_linear.bind(*residuals, dx, **functions))
    changing = [i for i, change in enumerate(changes) if type(change) is not ad.Zero]
    if changing:

        def of_changing(*arrays: jax.Array) -> jax.Array:
            now = dict(zip(changing, arrays, strict=True))
            now = [now.get(i, residual) for i, residual in enumerate(residuals)]
            return functions["function"](*now, x)

        at = [residuals[i] for i in changing]
        parts.append(jax.jvp(of_changing, at, [changes[i] for i in changing])[1])
    return y, reduce(jnp.add, parts)


def _transpose(dy: Any, *args: Any, function: Callable, transpose: Callable) -> list:
    *residuals, _ = args
    nothing: list = [None] * len(residuals)
    if type(dy) is ad.Zero:
        return [*nothing, None]
    return [*nothing, _linear.bind(*residuals, dy, function=transpose, transpose=function)]


def _batch(args: tuple, axes: tuple, **functions: Callable) -> tuple[jax.Array, int]:
    size = next(arg.shape[axis] for arg, axis in zip(args, axes, strict=True) if axis is not None)
    *residuals, x = (
        arg if axis is None else jnp.moveaxis(arg, axis, 0)
        for arg, axis in zip(args, axes, strict=True)
    )
    if axes[-1] is None:  # the transpose has a sum, which is that of the broadcast
        x = jnp.broadcast_to(x, (size, *x.shape))
    in_axes = (*(None if axis is None else 0 for axis in axes[:-1]), 0)
    mapped = {name: jax.vmap(function, in_axes) for name, function in functions.items()}
    return _linear.bind(*residuals, x, **mapped), 0


ad.primitive_jvps[_linear] = _jvp
ad.primitive_transposes[_linear] = _transpose
batching.primitive_batchers[_linear] = _batch
mlir.register_lowering(_linear, mlir.lower_fun(_call, multiple_results=False))
