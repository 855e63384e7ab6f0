"""DeepLabV3 and FCN against the authors' PyTorch models."""

import gzip
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import segmentation_golden as golden

import resnest_jax
from resnest_jax.errors import InputError
from resnest_jax.models.layers.resize import resize_aligned
from resnest_jax.tasks.segmentation.losses import pixel_cross_entropy
from resnest_jax.weights.torch_names import COUNTER, torch_entries

SMALL = {"planes": (8, 8, 16, 16), "stem_width": 4}
QUICK = ["fcn_resnest50_59@65", "deeplab_resnest50_21aux@64x97", "deeplab_resnest50_19@129"]


def quick_first(cases, quick):
    """Return the ids of cases as parameters, all but the quick ones slow."""
    return [pytest.param(name, marks=() if name in quick else pytest.mark.slow) for name in cases]


def error(actual, expected):
    return np.abs(np.asarray(actual) - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("name", quick_first(golden.cases("eval"), QUICK))
def test_logits(name):
    case = golden.cases("eval")[name]
    model, variables = golden.build(case)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert parameters == golden.ARRAYS[f"{name}/params"]

    @jax.jit
    def forward(variables, images):
        apply = partial(model.apply, variables, images)
        features = model.backbone.apply(
            {kind: tree["backbone"] for kind, tree in variables.items()}, images, method="features"
        )
        return apply(), apply(method="outputs"), apply(method="scores"), features

    logits, outputs, scores, features = forward(variables, golden.images(case))
    np.testing.assert_array_equal(logits, outputs["out"])
    every, low_every = (31, 10) if case["h"] >= 200 else (7, 2)
    classes = slice(None, None, max(1, case["nclass"] // 10))
    assert set(outputs) == {"out", "aux"} if case["aux"] else {"out"}
    for head, full in outputs.items():
        stored = {
            quantity: golden.ARRAYS[f"{name}/{head}_{quantity}"]
            for quantity in ("shape", "sub", "corner", "classmean", "low_sub", "argmax")
        }
        full, low = np.asarray(full), np.asarray(scores[head])
        assert full.shape == tuple(stored["shape"])
        assert error(full[:, ::every, ::every, classes], stored["sub"]) < 1e-5
        assert (
            error(
                full[:, [0, 0, -1, -1], [0, -1, 0, -1]].reshape(stored["corner"].shape),
                stored["corner"],
            )
            < 1e-5
        )
        assert error(full.mean((1, 2)), stored["classmean"]) < 1e-4
        assert error(low[:, ::low_every, ::low_every, classes], stored["low_sub"]) < 1e-5
        assert (full.argmax(-1)[:, ::every, ::every] != stored["argmax"]).mean() < 0.005
    for endpoint in ("c4", "c5"):
        assert features[endpoint].shape == tuple(golden.ARRAYS[f"{name}/{endpoint}_shape"])
        corner = np.asarray(features[endpoint])[:, -1, -1, :8]
        assert error(corner, golden.ARRAYS[f"{name}/{endpoint}_corner"]) < 1e-4


@pytest.mark.parametrize(
    "name", quick_first(golden.cases("train"), ["deeplab_resnest50_19aux_train@65x73"])
)
def test_gradients(name):
    case = golden.cases("train")[name]
    model, variables = golden.build(case, dropout=0.0, aspp_dropout=0.0)
    labels = golden.labels(case)
    assert (labels < 255).sum() == golden.ARRAYS[f"{name}/valid"]

    def loss(params, images):
        apply = partial(model.apply, train=True, mutable=["batch_stats"], method="outputs")
        outputs, updates = apply(variables | {"params": params}, images)
        parts = [pixel_cross_entropy(outputs[head], labels) for head in ("out", "aux")]
        return parts[0] + 0.2 * parts[1], (parts, updates["batch_stats"])

    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, (parts, stats)), grads = step(variables["params"], golden.images(case))
    stored = {key: golden.ARRAYS[f"{name}/{key}"] for key in ("grad_keys", "after_keys")}
    np.testing.assert_allclose(value, golden.ARRAYS[f"{name}/loss"], rtol=1e-5)
    np.testing.assert_allclose(parts, golden.ARRAYS[f"{name}/parts"], rtol=1e-5)
    ours = resnest_jax.to_torch({"params": grads, "batch_stats": stats}, model)
    norms = np.array([np.linalg.norm(ours[key]) for key in stored["grad_keys"]])
    expected = golden.ARRAYS[f"{name}/gradnorm"]
    limit = max(1e-3, 5 * case["noise"]["gradnorm"])  # the reference's own rounding in float32
    assert np.all(np.abs(norms - expected) <= limit * (expected + 1e-3 * expected.max()))
    after = np.stack([ours[key].ravel()[:8] for key in stored["after_keys"]])
    assert error(after, golden.ARRAYS[f"{name}/after_first8"]) < 1e-3


def test_names_are_those_of_the_authors():
    with gzip.open(golden.FOLDER / "state_dict_keys.json.gz") as file:
        models = json.load(file)
    for name, entries in models.items():
        head, backbone, _ = name.split("_")
        model = resnest_jax.create_model(
            golden.HEADS[head], backbone=backbone, num_classes=150, auxiliary=True
        )
        assert [entry.key for entry in torch_entries(model)] == [key for key, _ in entries]


@pytest.fixture(scope="module")
def small():
    """A DeepLabV3 of few channels, and its variables as initialised."""
    model = resnest_jax.create_model(
        "deeplabv3", backbone="resnest14", num_classes=5, auxiliary=True, **SMALL
    )
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    return model, variables


def test_torch_round_trip(small):
    model, variables = small
    state_dict = resnest_jax.to_torch(variables, model)
    without = {key: value for key, value in state_dict.items() if COUNTER not in key}
    for again in (state_dict, without):
        back = resnest_jax.from_torch(again, model)
        jax.tree.map(np.testing.assert_array_equal, back, dict(variables))
    with pytest.raises(InputError, match="auxlayer"):
        resnest_jax.from_torch(state_dict, model.clone(auxiliary=False))


def test_logits_do_not_depend_on_the_auxiliary_head(small):
    model, variables = small
    images = np.random.default_rng(0).standard_normal((2, 33, 47, 3)).astype(np.float32)
    with_it = jax.jit(model.apply)(variables, images)
    variables = {
        kind: {k: v for k, v in tree.items() if k != "auxiliary"}
        for kind, tree in variables.items()
    }
    without = jax.jit(model.clone(auxiliary=False).apply)(variables, images)
    assert with_it.shape == (2, 33, 47, 5)
    np.testing.assert_allclose(with_it, without, rtol=1e-5, atol=1e-6)


def test_the_backbone_as_a_model_stays_as_it_is():
    resnest_jax.create_model("fcn", backbone="resnest14")
    assert resnest_jax.create_model("resnest14").num_classes == 1000


def test_half_precision_gives_float32_logits(small):
    model, variables = small
    half = model.clone(backbone=model.backbone.clone(dtype="bfloat16", remat=(1, 2)))
    images = np.random.default_rng(0).standard_normal((2, 32, 32, 3)).astype(np.float32)
    logits = jax.jit(half.apply)(variables, images)
    assert logits.dtype == jnp.float32
    assert error(logits, jax.jit(model.apply)(variables, images)) < 0.1


def test_folded_model_has_the_same_logits(small):
    model, variables = small
    rng = np.random.default_rng(1)
    stats = jax.tree.map(lambda x: x + rng.uniform(0, 0.5, x.shape), variables["batch_stats"])
    variables = {"params": variables["params"], "batch_stats": stats}
    images = rng.standard_normal((2, 32, 48, 3)).astype(np.float32)
    folded, params = resnest_jax.fold(model, variables)
    expected = jax.jit(model.apply)(variables, images)
    assert error(jax.jit(folded.apply)(params, images), expected) < 1e-5
    with pytest.raises(InputError, match="already 'folded'"):
        resnest_jax.fold(folded, params)


def test_one_image_cannot_train(small):
    model, variables = small
    with pytest.raises(InputError, match="single value per channel"):
        jax.eval_shape(
            partial(model.apply, train=True, mutable=["batch_stats"]),
            variables,
            jnp.zeros((1, 64, 64, 3)),
            rngs={"dropout": jax.random.key(0)},
        )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_classes": 0}, "num_classes must be an integer >= 1"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\)"),
        ({"backbone": "resnest51"}, "unknown model 'resnest51'"),
        ({"head": "fcn"}, "unknown model field head; there are backbone, num_classes"),
        ({"output_stride": 4}, "output_stride must be one of"),
    ],
)
def test_bad_fields_are_named(fields, message):
    with pytest.raises(InputError, match=message):
        resnest_jax.create_model("deeplabv3", **fields)


@pytest.mark.parametrize("size", [(9, 13), (4, 5), (3, 1), (1, 9)])
@pytest.mark.parametrize("old", [(4, 5), (1, 5), (1, 1)])
def test_resize_keeps_the_corners(old, size):
    """Against numpy's interpolation, one axis after the other."""
    x = np.random.default_rng(0).standard_normal((2, *old, 3)).astype(np.float32)
    expected = np.float64(x)
    for axis, length in zip((1, 2), size, strict=True):
        n = expected.shape[axis]
        at = np.linspace(0, n - 1, length) if length > 1 else np.zeros(1)
        interpolate = partial(np.interp, at, np.arange(n))
        expected = np.apply_along_axis(interpolate, axis, expected)
    for platform in ("cpu", "onnx"):  # two forms
        np.testing.assert_allclose(resize_aligned(x, size, platform), expected, atol=1e-6)
