"""Translate functions of JAX to ONNX, equation by equation."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn, Literal
from onnx import ModelProto

from resnest_jax.errors import InputError
from resnest_jax.weights.onnx_graph import BATCH, Graph, Operand, Tensor, channels_first, sizes
from resnest_jax.weights.onnx_primitives import FUNCTIONS, RULES, static_shape

# Primitives that only call a function -> their parameter that holds it.
CALLS = {"jit": "jaxpr", "custom_jvp_call": "call_jaxpr"}


def convert(
    function: Callable[..., Any],
    images: jax.ShapeDtypeStruct,
    names: tuple[str, str],
    metadata: Mapping[str, str],
) -> ModelProto:
    """Convert a function of images and its result, channels last, to a model, channels first.

    Args:
      images: shape (B, H, W, C) with a symbolic B, float32.
      names: names of the input and the output.
      metadata: strings to store in the model.

    Raises:
      InputError: if a primitive of the function has no translation.
    """
    traced = jax.make_jaxpr(function)(images)
    graph = Graph()
    shape = static_shape(images)
    x = Tensor(names[0], shape, channels_first(len(shape)))
    (y,) = _translate(graph, traced.jaxpr, traced.consts, [x])
    axes = channels_first(len(y.shape))
    outputs = {names[1]: (graph.align(y, axes), sizes(y.shape, axes))}
    return graph.model({x.name: sizes(shape, x.axes)}, outputs, metadata)


def _translate(
    graph: Graph, jaxpr: Jaxpr, consts: Sequence[Any], args: Sequence[Operand]
) -> list[Operand]:
    """Add the nodes of a function to the graph; return its results."""
    values = dict(zip(jaxpr.constvars, map(np.asarray, consts), strict=True))
    values |= dict(zip(jaxpr.invars, args, strict=True))

    def read(atom: Any) -> Operand:
        return np.asarray(atom.val) if isinstance(atom, Literal) else values[atom]

    scope = graph.scope
    for eqn in jaxpr.eqns:
        modules = str(eqn.source_info.name_stack).split("/")
        # Besides modules there are methods, such as stem.setup, and products, as ij,jk->ik.
        names = [name for name in modules if name.isidentifier()]
        graph.scope = "/".join([scope, *names]).strip("/")
        results = _apply(graph, eqn, [read(atom) for atom in eqn.invars])
        values |= dict(zip(eqn.outvars, results, strict=True))
    graph.scope = scope
    return [read(atom) for atom in jaxpr.outvars]


def _apply(graph: Graph, eqn: JaxprEqn, inputs: list[Operand]) -> Sequence[Operand]:
    """Return the results of one equation; those of constants are constants."""
    name, results = eqn.primitive.name, None
    rule = FUNCTIONS.get(eqn.params["name"]) if name == "jit" else RULES.get(name)
    if name in CALLS and not rule:
        function = eqn.params[CALLS[name]]
        return _translate(graph, function.jaxpr, function.consts, inputs)
    if any(isinstance(x, Tensor) for x in inputs):
        results = rule(graph, eqn, *inputs) if rule else None
    elif all(BATCH not in static_shape(out.aval) for out in eqn.outvars):
        results = jax.tree.map(np.asarray, eqn.primitive.bind(*inputs, **eqn.params))
    if results is None:
        found = ", ".join(str(atom.aval) for atom in eqn.invars)
        raise InputError(f"the model cannot be exported to ONNX: it has JAX's {name} of {found}")
    return results if isinstance(results, list) else [results]
