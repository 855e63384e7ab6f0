"""Rules that translate JAX's primitives to nodes of ONNX.

Tensors of images stay channels first from the input to the output. A bias becomes part of its
convolution; sums over windows and images become means, whose scale cancels with the division that
follows; exp(x - max(x)) / sum(exp(x - max(x))) becomes one softmax.

A rule takes the graph, the equation and its operands, and returns the results, or None for unknown
cases. Operands of elementwise operations have equal ranks, or one is a scalar constant.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import numpy as np
from jax.extend.core import JaxprEqn

from resnest_jax.models.layers.activation import relu
from resnest_jax.weights.onnx_graph import (
    BATCH,
    Axes,
    Graph,
    Operand,
    Shape,
    Tensor,
    aligned,
    channels_first,
    large,
    sizes,
)


def _elementwise(op: str, graph: Graph, eqn: JaxprEqn, *operands: Operand) -> Tensor:
    shape = _result(eqn)
    axes = _common_axes(operands, shape)
    inputs = [graph.align(_of_rank(x, len(shape)), axes) for x in operands]
    return Tensor(graph.add(op, inputs)[0], shape, axes)


def _common_axes(operands: Sequence[Operand], shape: Shape) -> Axes:
    """Return the axes of the first operand that has all the large ones of the result."""
    found = (x.axes for x in operands if isinstance(x, Tensor) and set(large(shape)) <= set(x.axes))
    return next(found, channels_first(len(shape)))


def _of_rank(x: Operand, rank: int) -> Operand:
    return x.reshape((1,) * rank) if isinstance(x, np.ndarray) and not x.ndim else x


def _constant_like(x: Tensor, y: Operand) -> np.ndarray | None:
    """Return ``y`` with the axes of ``x``, if it is a constant that does not broadcast ``x``."""
    y = _of_rank(y, len(x.shape))
    if isinstance(y, Tensor) or not set(large(y.shape)) <= set(large(x.shape)):
        return None
    return aligned(y, x.axes)


def _tensor_first(x: Operand, y: Operand) -> tuple[Tensor, Operand]:
    """Order the operands of a commutative operation, of which one is a tensor."""
    return (x, y) if isinstance(x, Tensor) else (cast(Tensor, y), x)


def _add(graph: Graph, eqn: JaxprEqn, *operands: Operand) -> Tensor:
    """Add; a constant per channel joins the convolution or product before it."""
    x, y = _tensor_first(*operands)
    constant, node = _constant_like(x, y), graph.node(x.name, "Conv", "Gemm")
    if constant is None or not node or constant.size != constant.shape[1]:
        return _elementwise("Add", graph, eqn, x, y)
    bias = np.broadcast_to(constant.ravel(), sizes(x.shape, x.axes)[1])
    bias = sum((graph.constants[name] for name in node.input[2:]), bias)
    inputs = [*node.input[:2], graph.constant(bias, "bias")]
    return x._replace(name=graph.add_like(node, inputs))


def _multiply(graph: Graph, eqn: JaxprEqn, *operands: Operand) -> Tensor | None:
    x, y = _tensor_first(*operands)
    if isinstance(y, Tensor):
        return _elementwise("Mul", graph, eqn, x, y)
    return _scale(graph, x, y, np.multiply)


def _divide(graph: Graph, eqn: JaxprEqn, x: Operand, y: Operand) -> Tensor | None:
    if isinstance(x, Tensor) and isinstance(y, np.ndarray):
        return _scale(graph, x, y, np.divide)
    ratio = _elementwise("Div", graph, eqn, x, y)
    return ratio._replace(name=_softmax(graph, ratio.name) or ratio.name)


def _scale(graph: Graph, x: Tensor, y: np.ndarray, operation: np.ufunc) -> Tensor | None:
    """Multiply or divide by a constant; several in a row become one, and a factor of 1 none."""
    constant = _constant_like(x, y)
    if constant is None:
        return None
    name, factor = x.name, np.float64(1)
    before = graph.inputs(name, "Mul")
    if before and before[1] in graph.constants:
        name, factor = before[0], graph.constants[before[1]]
    factor = operation(factor, constant.astype(np.float64))
    if not (factor == 1).all():
        (name,) = graph.add("Mul", [name, graph.constant(factor, "scale")])
    return x._replace(name=name)


def _softmax(graph: Graph, ratio: str) -> str | None:
    """Add softmax(z) for exp(z) / sum(exp(z)); softmax(w) if z is w - max(w)."""
    numerator, denominator = graph.inputs(ratio, "Div")
    exponent, total = graph.inputs(numerator, "Exp"), graph.inputs(denominator, "ReduceSum")
    if not exponent or not total or total[0] != numerator:
        return None
    z, axes = exponent[0], graph.constants[total[1]].tolist()
    if shifted := graph.inputs(z, "Sub"):
        largest = graph.inputs(shifted[1], "ReduceMax")
        if largest and largest[0] == shifted[0] and graph.constants[largest[1]].tolist() == axes:
            z = shifted[0]
    return graph.add("Softmax", [z], axis=axes[0])[0] if len(axes) == 1 else None


def _maximum(graph: Graph, eqn: JaxprEqn, *operands: Operand) -> Tensor:
    x, y = _tensor_first(*operands)
    bound = y.item() if isinstance(y, np.ndarray) and y.size == 1 else None
    if bound == -np.inf:
        return x
    return _unary("Relu", graph, eqn, x) if bound == 0 else _elementwise("Max", graph, eqn, x, y)


def _unary(op: str, graph: Graph, _: JaxprEqn, x: Tensor) -> Tensor:
    return x._replace(name=graph.add(op, [x.name])[0])


# Convolutions, pools, products


def _convolution(graph: Graph, eqn: JaxprEqn, x: Operand, kernel: Operand) -> Tensor | None:
    settings = eqn.params
    plain = settings["batch_group_count"] == 1 and set(settings["lhs_dilation"]) == {1}
    if not plain or not isinstance(kernel, np.ndarray):
        return None
    spec = settings["dimension_numbers"]
    weight = graph.constant(kernel.transpose(spec.rhs_spec), "weight")
    (name,) = graph.add(
        "Conv",
        [graph.align(x, spec.lhs_spec), weight],
        strides=settings["window_strides"],
        pads=_pads(settings["padding"]),
        dilations=settings["rhs_dilation"],
        group=settings["feature_group_count"],
    )
    return Tensor(name, _result(eqn), spec.out_spec)


def _pads(padding: Sequence[tuple[int, int]]) -> list[int]:
    return [low for low, _ in padding] + [high for _, high in padding]


def _pool(op: str, graph: Graph, eqn: JaxprEqn, x: Tensor, **options: int) -> Tensor | None:
    """Apply a pool to images (B, H, W, C)."""
    settings = eqn.params
    window, strides = settings["window_dimensions"], settings["window_strides"]
    dilated = set(settings["base_dilation"] + settings["window_dilation"]) != {1}
    if dilated or len(window) != 4 or {window[0], window[3], strides[0], strides[3]} != {1}:
        return None
    axes = channels_first(4)
    (name,) = graph.add(
        op,
        [graph.align(x, axes)],
        kernel_shape=window[1:3],
        strides=strides[1:3],
        pads=_pads(settings["padding"][1:3]),
        **options,
    )
    return Tensor(name, _result(eqn), axes)


def _window_sum(graph: Graph, eqn: JaxprEqn, x: Tensor) -> Tensor | None:
    mean = _pool("AveragePool", graph, eqn, x, count_include_pad=1)
    count = np.array(math.prod(eqn.params["window_dimensions"]))
    return mean and _scale(graph, mean, count, np.multiply)


def _product(graph: Graph, eqn: JaxprEqn, *operands: Operand) -> Tensor | None:
    """Multiply by a constant matrix, along one axis."""
    contracted, batched = eqn.params["dimension_numbers"]
    x, matrix = _tensor_first(*operands)
    one_axis = len(contracted[0]) == 1 and not batched[0]
    if not one_axis or isinstance(matrix, Tensor) or matrix.ndim != 2:
        return None
    tensor_first = x is operands[0]
    (axis,), (place,) = contracted if tensor_first else contracted[::-1]
    weight = matrix if place == 0 else matrix.T  # (old, new)
    others = [other for other in range(len(x.shape)) if other != axis]
    if len(others) > 1 and x.axes[-2:-1] == (axis,):
        axes = x.axes
        (name,) = graph.add("MatMul", [graph.constant(weight.T, "weight"), x.name])
    else:
        axes = x.axes if len(others) > 1 and x.axes[-1:] == (axis,) else (*others, axis)
        inputs = [graph.align(x, axes), graph.constant(weight, "weight")]
        (name,) = graph.add("Gemm" if len(others) == 1 else "MatMul", inputs)
    # The result has the other axes of the first operand, then those of the second.
    order = [*others, axis] if tensor_first else [axis, *others]
    new = {old: new for new, old in enumerate(order)}
    return Tensor(name, x.shape, axes).renamed(new, _result(eqn))


def _reduce(op: str, graph: Graph, eqn: JaxprEqn, x: Tensor) -> Tensor | None:
    y = x.renamed(_without(x, eqn.params["axes"]), _result(eqn))
    places = sorted(x.axes.index(axis) for axis in eqn.params["axes"] if x.shape[axis] != 1)
    if not places:
        return y
    present = sizes(x.shape, x.axes)
    if op == "ReduceSum" and places == [i for i, n in enumerate(present) if i > 1 and n != 1]:
        count = np.array(math.prod(present[i] for i in places))
        return _scale(graph, _unary("GlobalAveragePool", graph, eqn, y), count, np.multiply)
    (name,) = graph.add(op, [x.name, graph.constant(np.array(places), "axes")])
    return y._replace(name=name)


# Shapes


def _reshape(graph: Graph, eqn: JaxprEqn, x: Tensor) -> Tensor:
    shape = _result(eqn)
    old, new = large(x.shape), large(shape)
    if [x.shape[axis] for axis in old] == [shape[axis] for axis in new]:
        return x.renamed(dict(zip(old, new, strict=True)), shape)
    name = graph.align(x, tuple(range(len(x.shape))))
    return Tensor(graph.reshape(name, shape), shape, tuple(range(len(shape))))


def _concatenate(graph: Graph, eqn: JaxprEqn, *operands: Operand) -> Tensor:
    shape = _result(eqn)
    axes = _common_axes(operands, shape)
    inputs = [graph.align(x, axes) for x in operands]
    place = axes.index(eqn.params["dimension"])
    return Tensor(graph.add("Concat", inputs, axis=place)[0], shape, axes)


def _without(x: Tensor, dropped: Sequence[int]) -> dict[int, int]:
    """Return old -> new for the axes that are kept."""
    kept = [axis for axis in range(len(x.shape)) if axis not in dropped]
    return {old: new for new, old in enumerate(kept)}


def _transpose(graph: Graph, eqn: JaxprEqn, x: Tensor) -> Tensor:
    order = eqn.params["permutation"]
    return x.renamed({old: new for new, old in enumerate(order)}, _result(eqn))


def _squeeze(graph: Graph, eqn: JaxprEqn, x: Tensor) -> Tensor:
    return x.renamed(_without(x, eqn.params["dimensions"]), _result(eqn))


def _broadcast(graph: Graph, eqn: JaxprEqn, x: Tensor) -> Tensor:
    new, shape = dict(enumerate(eqn.params["broadcast_dimensions"])), _result(eqn)
    present = [1] * len(shape)
    for old, axis in new.items():
        present[axis] = x.shape[old]
    y, axes = x.renamed(new, present), channels_first(len(shape))
    if y.shape == shape:
        return y
    target = [1 if size == BATCH else size for size in sizes(shape, axes)]
    inputs = [graph.align(y, axes), graph.constant(np.array(target), "shape")]
    return Tensor(graph.add("Expand", inputs)[0], shape, axes)


def _split(graph: Graph, eqn: JaxprEqn, x: Tensor) -> list[Tensor]:
    axis, parts = eqn.params["axis"], eqn.params["sizes"]
    if len(parts) == 1:
        return [x]
    inputs = [x.name, graph.constant(np.array(parts), "sizes")]
    names = graph.add("Split", inputs, len(parts), axis=x.axes.index(axis))
    shapes = [static_shape(out.aval) for out in eqn.outvars]
    return [Tensor(name, shape, x.axes) for name, shape in zip(names, shapes, strict=True)]


def _result(eqn: JaxprEqn) -> Shape:
    return static_shape(eqn.outvars[0].aval)


def static_shape(array: Any) -> Shape:
    """Return the shape of an array, with ``BATCH`` for sizes that depend on the batch."""
    return tuple(size if isinstance(size, int) else BATCH for size in array.shape)


Rule = Callable[..., Tensor | list[Tensor] | None]

# By the name of a function under jit.
FUNCTIONS: dict[str, Rule] = {relu.__name__: partial(_unary, "Relu")}
# By the name of a primitive.
RULES: dict[str, Rule] = {
    "add": _add,
    "broadcast_in_dim": _broadcast,
    "concatenate": _concatenate,
    "conv_general_dilated": _convolution,
    "div": _divide,
    "dot_general": _product,
    "exp": partial(_unary, "Exp"),
    "logistic": partial(_unary, "Sigmoid"),
    "max": _maximum,
    "mul": _multiply,
    "reduce_max": partial(_reduce, "ReduceMax"),
    "reduce_sum": partial(_reduce, "ReduceSum"),
    "reduce_window_max": partial(_pool, "MaxPool"),
    "reduce_window_sum": _window_sum,
    "reshape": _reshape,
    "split": _split,
    "squeeze": _squeeze,
    "stop_gradient": lambda graph, eqn, x: x,
    "sub": partial(_elementwise, "Sub"),
    "transpose": _transpose,
}
