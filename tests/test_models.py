"""The models by name: parameters, shapes, statistics, errors, torch names."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import state_dict

import resnest_jax
from resnest_jax.errors import InputError
from resnest_jax.models import __main__ as models_command
from resnest_jax.models import zoo
from resnest_jax.models.layers.activation import relu
from resnest_jax.models.layers.normalization import BatchNorm
from resnest_jax.models.layers.regularization import drop_block_masks, drop_path
from resnest_jax.models.resnest import Bottleneck
from resnest_jax.weights import torch_names


def init_shapes(model, size=64):
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), images)


def test_table_of_models(capsys, monkeypatch):
    few = {name: zoo.MODELS[name] for name in ("resnest50", "seresnet50")}
    monkeypatch.setattr(models_command, "MODELS", few)
    models_command.main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    (row,) = [line.split() for line in lines if line.startswith("resnest50 ")]
    assert row[1:10] == ["2", "1", "64", "27,483,240", "5.40", "fvcore", "224", "81.03", "224"]


def test_names_of_parameters():
    params = init_shapes(resnest_jax.create_model("resnest14"))["params"]
    assert params["stage1_block1"]["conv1"]["kernel"].shape == (1, 1, 64, 64)
    assert params["stage1_block1"]["conv2"]["conv"]["kernel"].shape == (3, 3, 32, 128)
    assert params["stage4_block1"]["downsample_conv"]["kernel"].shape == (1, 1, 1024, 2048)
    assert params["stem"]["conv3"]["kernel"].shape == (3, 3, 32, 64)
    assert params["head"]["kernel"].shape == (2048, 1000)


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (64, 97), (224, 208)])
@pytest.mark.parametrize("stride", [8, 16, 32])
def test_endpoint_shapes(size, stride):
    model = resnest_jax.create_model("resnest50_fast_2s2x40d", output_stride=stride)
    images = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)

    def apply(variables, images):
        return model.apply(variables, images, method="features")

    endpoints = jax.eval_shape(apply, variables, images)
    channels = {"c1": 64, "c2": 256, "c3": 512, "c4": 1024, "c5": 2048}
    for (name, width), reduction in zip(channels.items(), (2, 4, 8, 16, 32), strict=True):
        reduction = min(reduction, stride)
        height, length = (-(-side // reduction) for side in size)
        assert endpoints[name].shape == (2, height, length, width)


@pytest.mark.parametrize("depth", [14, 26, 50, 101, 200, 269])
def test_any_size(depth):
    """No size crashes; endpoints are the size over their stride, rounded up."""
    model = resnest_jax.create_model(f"resnest{depth}")
    sizes = [(32, 33), (299, 223), (57, 63), (200, 208), (240, 257)]
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    for height, width in sizes if depth <= 50 else sizes[:2]:  # deeper ones repeat their blocks
        images = jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32)
        apply = partial(model.apply, method="features")
        endpoints = jax.eval_shape(apply, variables, images)
        for i, endpoint in enumerate(endpoints.values(), 1):
            assert endpoint.shape[1:3] == (-(-height // 2**i), -(-width // 2**i))


def test_small_models_compute():
    """Any R and K, also bf16: finite float32 logits, statistics that change in training."""
    images = np.random.default_rng(0).standard_normal((4, 33, 32, 3)).astype(np.float32)
    for name in ("resnest14_fast_0s2x64d", "resnest14_fast_3s1x48d", "resnest14_fast_2s3x64d"):
        model = resnest_jax.create_model(
            name, num_classes=7, planes=[16, 16, 32, 32], stem_width=8, dtype="bfloat16"
        )
        variables = jax.jit(model.init)(jax.random.key(0), images)
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
        train = partial(model.apply, train=True, mutable=["batch_stats"])
        logits, updates = jax.jit(train)(variables, images)
        assert logits.shape == (4, 7)
        assert logits.dtype == jnp.float32
        assert np.isfinite(logits).all()
        before, after = variables["batch_stats"], updates["batch_stats"]
        moved = jax.tree.map(lambda a, b: bool((a != b).any()), before, after)
        assert all(jax.tree.leaves(moved))


def test_equal_blocks_are_traced_once_in_training(monkeypatch):
    """Else each is, so that ``nn.tabulate`` and interceptors see all of them."""
    traced = []
    shortcut = Bottleneck._shortcut

    def record(block, *args):
        traced.append(block.name)
        return shortcut(block, *args)

    model = resnest_jax.create_model("resnest50", stage_sizes=(3, 4, 1, 1))
    variables = init_shapes(model)
    images = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
    monkeypatch.setattr(Bottleneck, "_shortcut", record)
    for train, count in ((True, 6), (False, 9)):
        traced.clear()
        apply = partial(model.apply, train=train, mutable=["batch_stats"])
        jax.eval_shape(apply, variables, images)
        assert len(traced) == count


def test_dropout_and_no_head():
    images = np.random.default_rng(0).standard_normal((2, 32, 32, 3)).astype(np.float32)
    fields = {"planes": (8, 8, 8, 8), "stem_width": 4, "num_classes": 0}
    model = resnest_jax.create_model("resnest14", **fields, dropout=0.5)
    variables = jax.jit(model.init)(jax.random.key(0), images)
    assert "head" not in variables["params"]

    @jax.jit
    def features(key):
        rngs = {"dropout": jax.random.key(key)}
        return model.apply(variables, images, train=True, mutable=["batch_stats"], rngs=rngs)[0]

    kept, other = features(0) != 0, features(1) != 0
    assert kept.shape == (2, 32)
    assert (kept != other).any()
    np.testing.assert_array_equal(features(0), features(0))


def test_initialisation():
    """Normal with variance 2 / (k * k * features); last norms at 0; uniform dense layers."""
    images = jnp.zeros((1, 32, 32, 3))
    params = jax.jit(resnest_jax.create_model("resnest14").init)(jax.random.key(0), images)[
        "params"
    ]
    block = params["stage4_block1"]
    kernel = block["conv2"]["conv"]["kernel"]
    np.testing.assert_allclose(kernel.std(), np.sqrt(2 / (9 * 1024)), rtol=0.01)
    assert np.abs(kernel).max() > 3 * kernel.std()  # not truncated
    assert not block["bn3"]["scale"].any()
    assert (block["bn1"]["scale"] == 1).all()
    bound = 1 / np.sqrt(2048)
    for leaf in jax.tree.leaves(params["head"]):
        np.testing.assert_allclose(np.abs(leaf).max(), bound, rtol=0.01)
        np.testing.assert_allclose(leaf.std(), bound / np.sqrt(3), rtol=0.05)
    kept = resnest_jax.create_model("resnest14", zero_init_last=False)
    params = jax.jit(kept.init)(jax.random.key(0), images)["params"]
    assert (params["stage4_block1"]["bn3"]["scale"] == 1).all()


def test_batch_norm_statistics():
    x = np.random.default_rng(0).normal(3, 2, (4, 5, 6, 7)).astype(np.float32)
    module = BatchNorm()
    variables = module.init(jax.random.key(0), x)
    y, updates = module.apply(variables, x, train=True, mutable=["batch_stats"])
    values = x.reshape(-1, 7).astype(np.float64)
    np.testing.assert_allclose(
        y, (x - values.mean(0)) / np.sqrt(values.var(0) + 1e-5), rtol=1e-4, atol=1e-5
    )
    stats = updates["batch_stats"]
    np.testing.assert_allclose(stats["mean"], 0.1 * values.mean(0), rtol=1e-5)
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * values.var(0, ddof=1), rtol=1e-5)


@pytest.mark.parametrize("groups", [1, 2])
def test_masked_elements_do_not_count_in_statistics(groups):
    """The last group has no element that counts, and stays finite."""
    x = np.random.default_rng(0).normal(1, 2, (8, 3, 3, 5)).astype(np.float32)
    mask = np.array([True, False, True, True, False, False, False, False])
    variables = BatchNorm().init(jax.random.key(0), x)
    y, updates = BatchNorm(groups=groups).apply(variables, x, True, mask, mutable=["batch_stats"])
    alone, expected = BatchNorm().apply(variables, x[mask], True, mutable=["batch_stats"])
    np.testing.assert_allclose(y[mask], alone, atol=1e-5)
    assert np.isfinite(y).all()
    if groups == 1:
        for name in ("mean", "var"):
            actual = updates["batch_stats"][name]
            np.testing.assert_allclose(actual, expected["batch_stats"][name], rtol=1e-5)


def test_statistics_by_groups():
    """Each part of a batch is normalised alone; running statistics are averaged."""
    x = np.random.default_rng(0).normal(1, 2, (8, 3, 3, 5)).astype(np.float32)
    variables = BatchNorm().init(jax.random.key(0), x)
    y, updates = BatchNorm(groups=4).apply(variables, x, True, mutable=["batch_stats"])
    parts = [
        BatchNorm().apply(variables, part, True, mutable=["batch_stats"]) for part in np.split(x, 4)
    ]
    np.testing.assert_allclose(y, np.concatenate([part for part, _ in parts]), atol=1e-5)
    for name in ("mean", "var"):
        expected = np.mean([stats["batch_stats"][name] for _, stats in parts], 0)
        np.testing.assert_allclose(updates["batch_stats"][name], expected, rtol=1e-5)
    with pytest.raises(InputError, match="norm_groups 3 must divide the batch of 8"):
        BatchNorm(groups=3).apply(variables, x, True, mutable=["batch_stats"])


def test_statistics_by_groups_are_those_of_devices():
    """Eight groups on eight devices: statistics per device, and no communication."""
    mesh = jax.make_mesh((8,), ("data",), (jax.sharding.AxisType.Auto,))
    spec = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    x = np.random.default_rng(0).normal(1, 2, (16, 4, 4, 8)).astype(np.float32)
    variables = BatchNorm().init(jax.random.key(0), x)

    def forward(x):
        return BatchNorm(groups=8).apply(variables, x, True, mutable=["batch_stats"])[0]

    compiled = jax.jit(forward, out_shardings=spec).lower(jax.device_put(x, spec)).compile()
    assert "all-reduce" not in compiled.as_text()
    assert "all-gather" not in compiled.as_text()
    parts = [(part - part.mean((0, 1, 2))) / part.std((0, 1, 2)) for part in np.split(x, 8)]
    actual = compiled(jax.device_put(x, spec))
    np.testing.assert_allclose(actual, np.concatenate(parts), atol=1e-4)


SMALL = {"planes": (16, 16, 32, 32), "stem_width": 8, "num_classes": 7, "zero_init_last": False}


def loss_and_grads(model, variables, images):
    def loss(params):
        logits, updates = model.apply(
            variables | {"params": params},
            images,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(1)},
        )
        return (logits**2).mean(), updates

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])


def test_frozen_norms_do_not_move():
    images = np.random.default_rng(0).standard_normal((2, 32, 32, 3)).astype(np.float32)
    model = resnest_jax.create_model("resnest14", **SMALL, norm="frozen")
    variables = jax.jit(model.init)(jax.random.key(0), images)
    (_, updates), grads = loss_and_grads(model, variables, images[:1])  # one image is enough
    jax.tree.map(np.testing.assert_array_equal, updates["batch_stats"], variables["batch_stats"])
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        if "bn" in path[-2].key:
            assert not leaf.any(), path
    assert grads["stage4_block1"]["conv1"]["kernel"].any()


def test_remat_changes_nothing_but_memory():
    images = np.random.default_rng(0).standard_normal((4, 64, 64, 3)).astype(np.float32)
    fields = SMALL | {"drop_path": 0.2, "drop_block": 0.1}
    plain = resnest_jax.create_model("resnest14", **fields)
    remat = resnest_jax.create_model("resnest14", **fields, remat=(1, 2, 3, 4))
    variables = jax.jit(plain.init)(jax.random.key(0), images)
    (loss, _), grads = loss_and_grads(plain, variables, images)
    (loss_again, _), grads_again = loss_and_grads(remat, variables, images)
    np.testing.assert_allclose(loss, loss_again, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), grads, grads_again
    )


def test_drop_block():
    """3x3 holes at the rate gamma; the mean is kept; maps are drawn independently."""
    rate, size, channels = 0.1, 14, 4000
    shapes = [(size, size, channels), (5, 6, 8), (2, 9, 1), (size, size, channels)]

    def draw(progress):
        return jax.device_get(drop_block_masks(jax.random.key(0), shapes, rate * progress))

    (y,), small, smallest, (other,) = draw(1.0)
    assert small.shape == (1, *shapes[1])
    assert smallest.shape == (1, *shapes[2])
    assert (smallest == 1).all()  # smaller than a block
    np.testing.assert_allclose((y.mean(), other.mean()), 1, rtol=1e-5)
    holes = y == 0
    gamma = rate * size**2 / 9 / (size - 2) ** 2
    # A pixel whose nine neighbours can all be centres is kept with probability (1 - gamma)^9.
    np.testing.assert_allclose(holes[5, 5].mean(), 1 - (1 - gamma) ** 9, atol=0.02)
    np.testing.assert_allclose(holes[0, 0].mean(), gamma, atol=0.01)  # reached by one centre
    rates = (holes.mean(2), (other == 0).mean(2))
    both = (holes & (other == 0)).mean()
    np.testing.assert_allclose(both, (rates[0] * rates[1]).mean(), rtol=0.05)
    # Every hole is a union of 3x3 squares.
    centres = np.stack(
        [holes[i : size - 2 + i, j : size - 2 + j] for i in range(3) for j in range(3)]
    ).all(0)
    grown = np.zeros_like(holes)
    for i in range(3):
        for j in range(3):
            grown[i : size - 2 + i, j : size - 2 + j] |= centres
    np.testing.assert_array_equal(grown, holes)
    np.testing.assert_allclose((draw(0.5)[0] == 0).mean() / holes.mean(), 0.5, atol=0.05)
    assert all((mask == 1).all() for mask in draw(0.0))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"avd_first": True, "output_stride": 8, "remat": (4,)},
        {"radix": 0, "attention": "sk", "avd": False, "avg_down": False, "deep_stem": False},
    ],
    ids=["resnest", "dilated", "sk"],
)
def test_drop_block_in_a_network(fields):
    """Odd sizes; in training, near rate 1, stages 3 and 4 lose almost all, 1 and 2 nothing."""
    model = resnest_jax.create_model("resnest26", **SMALL | fields, drop_block=0.99)
    images = np.random.default_rng(0).standard_normal((2, 227, 163, 3)).astype(np.float32)
    variables = jax.jit(model.init)(jax.random.key(0), images)

    @jax.jit
    def maps(progress):
        rngs, settings = {"dropout": jax.random.key(0)}, {"mutable": ["batch_stats"]}
        apply = partial(model.apply, variables, method=model.features, rngs=rngs, **settings)
        return apply(images, True, progress)[0]

    whole, dropped = maps(0.0), maps(1.0)
    for name in ("c1", "c2", "c3"):
        np.testing.assert_array_equal(whole[name], dropped[name])
    for name in ("c4", "c5"):
        assert whole[name].shape == dropped[name].shape
        assert np.isfinite(dropped[name]).all()
        assert np.abs(whole[name] - dropped[name]).mean() > 0.1 * np.abs(whole[name]).mean()
    # In evaluation nothing is dropped, and no random numbers are asked for.
    plain = resnest_jax.create_model("resnest26", **SMALL | fields)
    logits = (jax.jit(network.apply)(variables, images) for network in (plain, model))
    np.testing.assert_array_equal(*logits)


def test_drop_path():
    x = jnp.ones((4000, 2, 2, 3))
    y = drop_path(0.25).apply({}, x, deterministic=False, rngs={"dropout": jax.random.key(0)})
    per_image = np.asarray(y).reshape(4000, -1)
    assert set(np.unique(per_image)) == {np.float32(0), np.float32(1 / 0.75)}
    assert (per_image == per_image[:, :1]).all()
    np.testing.assert_allclose((per_image[:, 0] == 0).mean(), 0.25, atol=0.03)


def test_drop_path_rises_with_depth():
    settings = dict(resnest_jax.create_model("resnest26", drop_path=0.7).block_settings())
    rates = [fields["drop_path"] for fields in settings.values()]
    np.testing.assert_allclose(rates, np.arange(8) / 10)


def test_a_single_image_cannot_train():
    images = jnp.zeros((1, 64, 64, 3))
    model = resnest_jax.create_model("resnest14")
    variables = jax.jit(model.init)(jax.random.key(0), images)
    jax.eval_shape(model.apply, variables, images)
    with pytest.raises(InputError, match=r"conv2/bn1.* single value per channel"):
        model.apply(variables, images, train=True, mutable=["batch_stats"])


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("resnest51", {}, "unknown model 'resnest51'.*did you mean resnest.*resnest14, "),
        ("resnest50_fast_2s1x", {}, "unknown model"),
        ("resnest50", {"radixx": 2}, "unknown model field radixx; there are stage_sizes, "),
        ("resnest50", {"radix": -1}, "radix must be an integer >= 0; got -1"),
        ("resnest50", {"radix": 3}, "3 groups must divide the 64 channels"),
        ("resnest50", {"cardinality": 0}, "cardinality must be"),
        ("resnest50", {"output_stride": 4}, r"output_stride must be one of \(8, 16, 32\); got 4"),
        ("resnest50", {"dropout": 1.0}, r"dropout must be in \[0, 1\)"),
        ("resnest50", {"dtype": "int8"}, r"dtype must be one of .*; got 'int8'"),
        ("resnest50", {"dtype": "bf17"}, r"dtype must be one of .*; got 'bf17'"),
        ("resnest50", {"planes": (64, 128)}, "planes must be four positive integers"),
        ("resnest50", {"implementation": "fast"}, "implementation must be 'auto', one of"),
        ("resnest50", {"implementation": "split,split"}, "three of these .* got 'split,split'"),
        ("resnest50", {"platform": "gpu"}, r"platform must be None or one of .*cuda.* got 'gpu'"),
        ("resnest50", {"attention": "se"}, "attention 'se' needs radix 0; got 2"),
        ("resnest50", {"norm": "group"}, r"norm must be one of .*frozen.*got 'group'"),
        ("resnest50", {"drop_block": -0.1}, r"drop_block must be in \[0, 1\)"),
        ("resnest50", {"remat": (5,)}, "remat must be some of the stages 1 to 4"),
        ("resnest50", {"remat": 1}, "remat must be some of the stages 1 to 4; got 1"),
        ("resnest50", {"planes": 5}, "planes must be four positive integers; got 5"),
        ("resnest50", {"dropout": "0"}, r"dropout must be in \[0, 1\); got '0'"),
        ("resnest50", {"dtype": "float8_e4m3fn"}, "dtype must be one of .*float16"),
    ],
)
def test_bad_fields_are_named(name, fields, message):
    with pytest.raises(InputError, match=message):
        resnest_jax.create_model(name, **fields)


@pytest.mark.parametrize("shape", [(64, 64, 3), (1, 31, 64, 3)])
def test_bad_images_are_named(shape):
    with pytest.raises(InputError, match=r"images must be \(B, H, W, C\)"):
        resnest_jax.create_model("resnest14").init(jax.random.key(0), jnp.zeros(shape))


@pytest.mark.parametrize("name", ["resnest14", "resnet50", "resnetd50", "resnest50_fast_1s2x40d"])
def test_torch_round_trip(name):
    model = resnest_jax.create_model(name)
    images = jnp.zeros((1, 32, 32, 3))
    variables = jax.jit(model.init)(jax.random.key(0), images)
    back = resnest_jax.from_torch(resnest_jax.to_torch(variables, model), model)
    assert jax.tree.structure(back) == jax.tree.structure(variables)
    jax.tree.map(np.testing.assert_array_equal, back, variables)


@pytest.mark.parametrize(
    ("name", "entries"),
    [("resnest50", 476), ("resnest101", 935), ("resnest200", 1826), ("resnest269", 2447)],
)
def test_torch_entries(name, entries):
    """The same number and names as in the authors' files."""
    model = resnest_jax.create_model(name)
    keys = [entry.key for entry in torch_names.torch_entries(model)]
    assert len(keys) == len(set(keys)) == entries
    assert keys[:3] == ["conv1.0.weight", "conv1.1.weight", "conv1.1.bias"]
    assert keys[-2:] == ["fc.weight", "fc.bias"]
    expected = {
        "bn1.num_batches_tracked",
        "layer1.0.conv2.fc1.bias",
        "layer1.0.downsample.1.weight",
        "layer4.2.bn3.running_var",
    }
    assert expected <= set(keys)


def test_torch_mismatch_names_everything():
    model = resnest_jax.create_model("resnest14")
    weights = state_dict(model)
    weights["layer9.0.conv1.weight"] = weights.pop("layer1.0.conv1.weight")
    weights["fc.weight"] = weights["fc.weight"][:10]
    with pytest.raises(InputError) as error:
        resnest_jax.from_torch(weights, model)
    message = str(error.value)
    assert "missing: layer1.0.conv1.weight" in message
    assert "unknown: layer9.0.conv1.weight" in message
    assert "fc.weight is (10, 2048), expected (1000, 2048)" in message


def test_frozen_stages_keep_their_statistics_and_get_no_gradient():
    """Stem and stage 1 equal a network with frozen norms, the rest one without."""
    small = {"planes": (8, 8, 8, 8), "stem_width": 4, "num_classes": 3, "norm_groups": 1}
    model = resnest_jax.create_model("resnest14", frozen_stages=1, **small)
    images = jax.random.normal(jax.random.key(1), (4, 32, 32, 3))
    variables = jax.jit(model.init)(jax.random.key(0), images)
    stats = jax.tree.map(lambda x: x + 0.25, variables["batch_stats"])

    def loss(params, model):
        variables = {"params": params, "batch_stats": stats}
        logits, updates = model.apply(variables, images, train=True, mutable=["batch_stats"])
        return (logits**2).sum(), updates["batch_stats"]

    gradient = jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)
    grads, updated = gradient(variables["params"], model)
    for name, leaves in grads.items():
        frozen = name == "stem" or name.startswith("stage1")
        assert frozen == all(not leaf.any() for leaf in jax.tree.leaves(leaves)), name
        if name != "head":
            same = jax.tree.map(np.array_equal, updated[name], stats[name])
            assert frozen == all(jax.tree.leaves(same)), name
    # Running statistics at the end of stage 1 are those of an evaluation.
    variables = {"params": variables["params"], "batch_stats": stats}
    features = partial(model.apply, method="features", mutable=["batch_stats"])
    evaluated, trained = (
        jax.jit(partial(features, train=train))(variables, images)[0] for train in (False, True)
    )
    np.testing.assert_array_equal(trained["c2"], evaluated["c2"])
    assert (trained["c3"] != evaluated["c3"]).any()


def test_numpy_numbers_are_numbers():
    fields = {"num_classes": np.int64(3), "planes": np.full(4, 8), "dropout": np.float32(0.25)}
    plain = {"num_classes": 3, "planes": (8, 8, 8, 8), "dropout": 0.25}
    made = resnest_jax.create_model("resnest14", **fields)
    assert made == resnest_jax.create_model("resnest14", **plain)
    assert hash(made) == hash(resnest_jax.create_model("resnest14", **plain))


@pytest.mark.parametrize("attention", ["split", "sk"])
def test_empty_batch_gives_no_logits(attention):
    fields = SMALL | ({"radix": 0, "avd": False} if attention == "sk" else {})
    model = resnest_jax.create_model("resnest14", **fields, attention=attention)
    images = jnp.zeros((0, 32, 32, 3))
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    assert jax.eval_shape(model.apply, variables, images).shape == (0, model.num_classes)
    with pytest.raises(InputError, match="batch size of at least 2"):
        jax.eval_shape(partial(model.apply, train=True, mutable="batch_stats"), variables, images)


def test_variables_are_float32_under_x64():
    with jax.enable_x64(True):
        for dtype in (jnp.float32, jnp.float64):
            variables = init_shapes(resnest_jax.create_model("resnest14", **SMALL, dtype=dtype))
            assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


def test_nan_in_weights_is_seen_in_logits():
    """XLA's maximum on CPU turned it into zeros after the last block."""
    model = resnest_jax.create_model("resnest14", **SMALL)
    images = np.random.default_rng(0).standard_normal((2, 32, 32, 3)).astype(np.float32)
    variables = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), init_shapes(model))
    apply = jax.jit(model.apply)
    for name in ("bn1", "bn3"):
        broken = jax.tree.map(np.copy, variables)
        broken["params"]["stage4_block1"][name]["scale"] *= np.nan
        assert jnp.isnan(apply(broken, images)).all(), name


def test_relu_is_that_of_jax():
    x = jnp.array([-2.0, -0.0, 0.0, 3.0, jnp.inf, -jnp.inf])
    for ours, expected in (
        (relu(x), jax.nn.relu(x)),
        (jax.vmap(jax.grad(relu))(x), jax.vmap(jax.grad(jax.nn.relu))(x)),
    ):
        np.testing.assert_array_equal(ours, expected)
