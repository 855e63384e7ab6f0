"""ONNX graphs under construction: nodes, constants, and tensors whose axes have labels."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 18
IR_VERSION = 8  # of the same release of onnx; runtimes of that time refuse later ones
BATCH = -1  # in shapes

Shape = tuple[int, ...]
Axes = tuple[int | None, ...]


class Tensor(NamedTuple):
    """A tensor of the graph, and the array of JAX that it holds.

    Attributes:
      name: name of the tensor.
      shape: shape of the array, with ``BATCH`` for the batch.
      axes: axis of the array per axis of the tensor. Axes of size 1 come and go without a node:
        None stands for one that the array does not have, and those of the array may be missing.
    """

    name: str
    shape: Shape
    axes: Axes

    def renamed(self, new: Mapping[int, int], shape: Sequence[int]) -> "Tensor":
        """Rename the axes of the array, old -> new; others have size 1."""
        axes = tuple(None if axis is None else new.get(axis) for axis in self.axes)
        return Tensor(self.name, tuple(shape), axes)


Operand = Tensor | np.ndarray  # an array is a constant


def channels_first(rank: int) -> Axes:
    """Return the axes of a tensor (B, C, ...) for an array (B, ..., C)."""
    return (0, rank - 1, *range(1, rank - 1)) if rank > 1 else tuple(range(rank))


def sizes(shape: Shape, axes: Axes) -> list[int]:
    """Return the shape of a tensor that has these axes of an array."""
    return [1 if axis is None else shape[axis] for axis in axes]


def large(shape: Shape, axes: Axes | None = None) -> list[int]:
    """Return the axes of an array whose size is not 1, in the order of a tensor if it is given."""
    axes = tuple(range(len(shape))) if axes is None else axes
    return [axis for axis in axes if axis is not None and shape[axis] != 1]


def aligned(x: np.ndarray, axes: Axes) -> np.ndarray:
    """Return a constant with the axes of a tensor, all large ones included."""
    order = large(x.shape, axes)
    small = [axis for axis in range(x.ndim) if axis not in order]
    return x.transpose(order + small).reshape(sizes(x.shape, axes))


class Graph:
    """Nodes in order. A node is never changed; those that no output needs are left out.

    Attributes:
      scope: path of the module whose nodes are added; names start with it.
      constants: values by name.
    """

    def __init__(self) -> None:
        self.scope = ""
        self._nodes: dict[str, onnx.NodeProto] = {}  # by output
        self.constants: dict[str, np.ndarray] = {}
        self._count = 0

    def add(self, op: str, inputs: Sequence[str], outputs: int = 1, **attributes: Any) -> list[str]:
        """Add a node; return the names of its outputs."""
        names = [self._name(op) for _ in range(outputs)]
        node = helper.make_node(op, inputs, names, names[0], **attributes)
        self._nodes |= dict.fromkeys(names, node)
        return names

    def add_like(self, node: onnx.NodeProto, inputs: Sequence[str]) -> str:
        """Add a node with the name and attributes of another; return the name of its output."""
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        scope, self.scope = self.scope, node.name.rpartition("/")[0]
        (name,) = self.add(node.op_type, inputs, **attributes)
        self.scope = scope
        return name

    def node(self, name: str, *ops: str) -> onnx.NodeProto | None:
        """Return the node that makes a tensor if it has one of these operators."""
        node = self._nodes.get(name)
        return node if node is not None and node.op_type in ops else None

    def inputs(self, name: str, op: str) -> Sequence[str]:
        """Return the inputs of the node that makes a tensor if it has this operator, else none."""
        node = self.node(name, op)
        return node.input if node else ()

    def constant(self, value: Any, name: str) -> str:
        """Add a constant, float or integer; return its name."""
        name = self._name(name)
        self.constants[name] = np.asarray(value)
        return name

    def align(self, x: Operand, axes: Axes) -> str:
        """Return the name of a tensor that holds ``x`` with these axes, all large ones included."""
        if isinstance(x, np.ndarray):
            return self.constant(aligned(x, axes), "constant")
        wanted, order = sizes(x.shape, axes), large(x.shape, axes)
        name, present = x.name, sizes(x.shape, x.axes)
        if order != large(x.shape, x.axes):
            spare = [i for i, size in enumerate(present) if size == 1]
            places = [
                x.axes.index(axis) if axis in order else spare.pop(0)
                for axis in axes
                if axis in order or spare
            ]
            places += spare
            (name,) = self.add("Transpose", [name], perm=places)
            present = [present[i] for i in places]
        return name if present == wanted else self.reshape(name, wanted)

    def reshape(self, name: str, shape: Sequence[int]) -> str:
        """Add a node that reshapes a tensor; return the name of the result."""
        if before := self.node(name, "Reshape"):
            name = before.input[0]
        return self.add("Reshape", [name, self.constant(np.array(shape), "shape")])[0]

    def model(
        self,
        inputs: Mapping[str, Sequence[int]],
        outputs: Mapping[str, tuple[str, Sequence[int]]],
        metadata: Mapping[str, str],
    ) -> onnx.ModelProto:
        """Return the model, checked by onnx.

        Args:
          inputs: name -> shape of a float32 input.
          outputs: name -> tensor and shape of an output.
          metadata: stored in the model.
        """
        nodes = self._needed([tensor for tensor, _ in outputs.values()])
        final = {tensor: name for name, (tensor, _) in outputs.items()} | {x: x for x in inputs}
        count = Counter(final.values())
        constants = {}
        for node in nodes:
            for name in (*node.input, *node.output):
                if name not in final:
                    plain = name.partition("#")[0]
                    count[plain] += 1
                    final[name] = plain if count[plain] == 1 else f"{plain}_{count[plain]}"
                if name in self.constants:
                    constants[final[name]] = self.constants[name]
            node.name = final[node.output[0]]
            for field in (node.input, node.output):
                field[:] = [final[name] for name in field]
        graph = helper.make_graph(
            nodes,
            "main",
            [_info(name, shape) for name, shape in inputs.items()],
            [_info(name, shape) for name, (_, shape) in outputs.items()],
            [_initializer(name, value) for name, value in constants.items()],
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="resnest_jax",
        )
        helper.set_model_props(model, dict(metadata))
        onnx.checker.check_model(model, full_check=True)
        return model

    def _needed(self, outputs: Sequence[str]) -> list[onnx.NodeProto]:
        """Return the nodes that outputs need, in order."""
        needed, nodes = set(outputs), []
        for node in reversed(list({node.name: node for node in self._nodes.values()}.values())):
            if needed & set(node.output):
                needed |= set(node.input)
                nodes.append(node)
        return nodes[::-1]

    def _name(self, name: str) -> str:
        self._count += 1
        return f"{self.scope}/{name}#{self._count}".lstrip("/")


def _info(name: str, shape: Sequence[int]) -> onnx.ValueInfoProto:
    dims = ["batch" if size == BATCH else size for size in shape]
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, dims)


def _initializer(name: str, value: np.ndarray) -> TensorProto:
    dtype = np.int64 if np.issubdtype(value.dtype, np.integer) else np.float32
    return numpy_helper.from_array(np.ascontiguousarray(value, dtype), name)
