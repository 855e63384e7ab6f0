"""ONNX exports: their graphs, and ONNX Runtime's logits against the models'."""

import sys
from collections import Counter

import golden
import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest

import resnest_jax
from resnest_jax.errors import InputError
from resnest_jax.models.zoo import MODELS
from resnest_jax.weights.exports import export_file
from resnest_jax.weights.onnx import export
from resnest_jax.weights.onnx_translation import convert

NARROW = {"planes": (8, 8, 8, 8), "stem_width": 4, "num_classes": 10, "stage_sizes": (1, 1, 1, 1)}
# Model, fields, size of the images.
FAMILIES = {
    "radix 2": ("resnest14", {}, 64),
    "radix 1": ("resnest14_fast_1s2x64d", {"remat": (1,)}, 33),
    "radix 4": ("resnest14_fast_4s1x64d", {"frozen_stages": 1}, 48),
    "dilated, no head": ("resnest14_fast_2s2x64d", {"output_stride": 8, "num_classes": 0}, 35),
    "resnet": ("resnet50", {"stage_sizes": (2, 1, 1, 1)}, 33),
    "resnet-d": ("resnetd50", {}, 67),
    "resnext": ("resnext50_32x4d", {"planes": (16, 16, 32, 32)}, 32),
    "se": ("seresnet50", {}, 33),
    "sk": ("skresnet50", {}, 33),
}
# Model, backbone, fields, height and width of the images.
SEGMENTATION = {
    "deeplabv3": ("deeplabv3", "resnest14", {"auxiliary": True}, (64, 47)),
    "stride 16": ("deeplabv3", "resnet50", {"output_stride": 16}, (33, 65)),
    "one row": ("deeplabv3", "resnest14_fast_2s2x64d", {"output_stride": 32}, (32, 49)),
    "fcn": ("fcn", "resnet50", {"auxiliary": True, "remat": (1, 2)}, (47, 33)),
    "fcn, stride 16": ("fcn", "resnest14", {"output_stride": 16, "norm": "frozen"}, (35, 65)),
}
OPERATORS = {"Conv", "Relu", "MaxPool", "AveragePool", "GlobalAveragePool", "Add", "Mul", "Split"}
OPERATORS |= {"Softmax", "Sigmoid", "Reshape", "Transpose", "Gemm"}


def run(model, images):
    """Return ONNX Runtime's output, channels last, for images (B, H, W, C)."""
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (output,) = session.run(None, {"images": np.moveaxis(images, -1, 1)})
    return np.moveaxis(output, 1, -1)


def assert_same_output(model, variables, images, tolerance=1e-4):
    exported = export(model, variables, images.shape[1:3], {})
    expected = np.asarray(jax.jit(model.apply)(variables, images))
    for batch in (len(images), 1):
        output = run(exported, images[:batch])
        assert output.shape == expected[:batch].shape
        assert np.abs(output - expected[:batch]).max() < tolerance * np.abs(expected).max()
    return exported


def assert_same_function(function):
    """Check the model of a function of images (B, 4, 4, 4), sizes that can be mixed up."""
    (batch,) = jax.export.symbolic_shape("batch")
    shape = jax.ShapeDtypeStruct((batch, 4, 4, 4), jnp.float32)
    with jax.numpy_rank_promotion("allow"):
        model = convert(function, shape, ("images", "y"), {})
        images = golden.images((2, 4, 4), 1).repeat(2, -1)[..., :4]
        expected = function(images)
    np.testing.assert_allclose(run(model, images), expected, rtol=1e-5, atol=1e-5)
    return model


def count(model):
    return Counter(node.op_type for node in model.graph.node)


@pytest.mark.parametrize("family", FAMILIES)
def test_runtime_has_the_same_logits(family):
    name, fields, size = FAMILIES[family]
    model, variables = golden.build(name, NARROW | fields)
    exported = assert_same_output(model, variables, golden.images((3, size, size), 1))
    operators = count(exported)
    assert set(operators) <= OPERATORS
    assert ("Transpose" in operators) == ("dilated" in family)  # radix and cardinality above 1
    # Only the batch is free in a reshape.
    constants = {x.name: onnx.numpy_helper.to_array(x) for x in exported.graph.initializer}
    shapes = [constants[n.input[1]] for n in exported.graph.node if n.op_type == "Reshape"]
    assert all(shape[0] == -1 and (shape[1:] > 0).all() for shape in shapes)


def test_graph_has_no_other_node_than_the_network():
    """Four blocks, each with a shortcut, three with pools; biases are in the convolutions."""
    model, variables = golden.build("resnest14", NARROW)
    exported = export(model, variables, (64, 64), {"model": "resnest14"})
    assert count(exported) == {
        "Conv": 3 + 4 * 6,
        "Relu": 3 + 4 * 4,
        "MaxPool": 1,
        "AveragePool": 3 * 2,
        "GlobalAveragePool": 4 + 1,
        "Split": 4 * 2,
        "Softmax": 4,
        "Reshape": 4 * 3 + 1,
        "Mul": 4 * 2,
        "Add": 4 * 3,
        "Gemm": 1,
    }
    kernels = [leaf for leaf in jax.tree.leaves(variables["params"]) if leaf.ndim > 1]
    floats = [x for x in exported.graph.initializer if x.data_type == onnx.TensorProto.FLOAT]
    assert len(floats) == 2 * len(kernels)  # a bias each
    assert exported.graph.node[0].name == "ResNeSt/stem/conv1/Conv"
    assert [(x.domain, x.version) for x in exported.opset_import] == [("", 18)]
    batch, *image = exported.graph.input[0].type.tensor_type.shape.dim
    assert (batch.dim_param, [dim.dim_value for dim in image]) == ("batch", [3, 64, 64])


@pytest.mark.parametrize("case", SEGMENTATION)
def test_runtime_has_the_same_logits_of_pixels(case):
    name, backbone, fields, size = SEGMENTATION[case]
    model, variables = golden.build(name, NARROW | {"backbone": backbone} | fields)
    exported = assert_same_output(model, variables, golden.images((2, *size), 1), 1e-5)
    operators = count(exported)
    assert set(operators) <= OPERATORS | {"Concat", "Expand", "MatMul"}
    assert operators["Conv"] == sum(
        leaf.ndim == 4
        for part in ("backbone", "head")
        for leaf in jax.tree.leaves(variables["params"][part])
    )
    pyramid, one_row = name == "deeplabv3", case == "one row"  # a row is repeated
    assert operators["MatMul"] == 2 - one_row
    assert (operators["Concat"], operators["Expand"]) == (pyramid, pyramid + one_row)


@pytest.mark.parametrize(
    "product", ["bhwc,oh->bowc", "bhwc,wo->bohc", "oc,bhwc->bwho", "ho,bhwc->bwco"]
)
def test_products_along_any_axis(product):
    matrix = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)

    def function(x):
        return jnp.einsum(product, *((x, matrix) if product[0] == "b" else (matrix, x)))

    assert count(assert_same_function(function))["MatMul"] == 1


def test_products_and_concatenations_of_means():
    matrix = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)

    def function(x):
        columns = jnp.concatenate([x, jnp.mean(x, 2, keepdims=True)], 2)
        mean = jnp.mean(x, (1, 2))
        mean = jnp.concatenate([(matrix @ mean.T).T, mean @ matrix], 1)
        return jnp.concatenate([columns, columns], 3) * mean[:, None, None]

    assert_same_function(function)


def test_operations_in_other_layouts():
    """What no network of the zoo does yet: axes are never taken for others of equal size."""

    def function(x):  # (B, 4, 4, 4)
        e = jnp.exp(x - x.max(2, keepdims=True))
        softmax = e / e.sum(2, keepdims=True)
        other = e / e.sum(2, keepdims=True).swapaxes(1, 2)
        mean = jnp.broadcast_to(jnp.mean(x, (1, 2), keepdims=True), x.shape)
        y = jnp.maximum(softmax - other, mean).transpose(0, 3, 1, 2) + 2 * x / jnp.arange(1.0, 5.0)
        return (y * x.reshape(-1, 16, 4).swapaxes(1, 2).reshape(x.shape)).sum(1)

    assert count(assert_same_function(function))["Softmax"] == 1


def test_what_cannot_be_exported_is_refused(tmp_path, monkeypatch):
    (batch,) = jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, 4, 4, 4), jnp.float32)
    for function in (jnp.sin, lambda x: x @ x, lambda x: jnp.zeros(x.shape) + x):
        with pytest.raises(InputError, match="cannot be exported to ONNX"):
            convert(function, images, ("images", "y"), {})
    grey = {"params": {"stem": {"conv1": {"kernel": np.zeros((3, 3, 1, 8))}}}}
    with pytest.raises(InputError, match="RGB"):
        export(resnest_jax.create_model("resnest14"), grey, (64, 64), {})
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(InputError, match=r"onnx.*resnest_jax\[onnx\]"):
        export_file("resnest14", "absent", tmp_path / "model.onnx", image_size=64)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_published_models_at_their_size(name):
    model, variables = golden.build(name, {})
    size = MODELS[name].test_crop
    assert_same_output(model, variables, golden.images((2, size, size), 1))
