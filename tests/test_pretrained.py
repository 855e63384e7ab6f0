"""Weights from files, runs and the hub, and back."""

import os
import subprocess
import sys

import commands
import golden
import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import resnest_jax
from resnest_jax.errors import InputError
from resnest_jax.weights import formats, published
from resnest_jax.weights.torch_names import COUNTER

NAME = "resnest14"


@pytest.fixture(scope="module")
def published_file(tmp_path_factory):
    """Write a file of weights as timm publishes them."""
    model = resnest_jax.create_model(NAME)
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    safetensors.numpy.save_file(golden.state_dict(model), path)
    return path


def assert_trees_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def convert(*args):
    return commands.run("resnest_jax.convert", *args)


def test_safetensors_round_trip(tmp_path):
    model, variables = golden.build("resnest50", {})
    path = tmp_path / "resnest50.safetensors"
    assert resnest_jax.save_weights(variables, model, path) == 476
    stored = safetensors.numpy.load_file(path)
    assert len(stored) == 476
    assert sum(COUNTER in key for key in stored) > 0
    for key, value in golden.state_dict(model).items():
        np.testing.assert_array_equal(stored[key], value)
    _, loaded = resnest_jax.load_pretrained("resnest50", path)
    assert_trees_equal(loaded, variables)


def test_pth_round_trip(tmp_path):
    torch = pytest.importorskip("torch")
    model, variables = golden.build(NAME, {})
    path = tmp_path / "weights.pth"
    resnest_jax.save_weights(variables, model, path)
    content = torch.load(path, weights_only=True)
    # As from model.state_dict(keep_vars=True) of a data-parallel model.
    weights = {
        f"module.{key}": torch.nn.Parameter(value, value.is_floating_point())
        for key, value in content.items()
    }
    wrapped = {"state_dict": weights, "epoch": 3}
    torch.save(wrapped, tmp_path / "wrapped.pth")
    for file in (path, tmp_path / "wrapped.pth"):
        assert_trees_equal(resnest_jax.load_pretrained(NAME, file)[1], variables)


def test_files_named_as_published_are_checked(tmp_path):
    path = tmp_path / "resnest50_fast_2s1x64d-44938639.pth"
    path.write_bytes(b"not that")
    with pytest.raises(InputError, match=r"sha256 is [0-9a-f]{64}, not 44938639... as the name"):
        resnest_jax.load_pretrained("resnest50_fast_2s1x64d", path)
    # These two have equal shapes.
    with pytest.raises(InputError, match="those of resnest50_fast_2s1x64d, not of resnest50"):
        resnest_jax.load_pretrained("resnest50", path)


def test_bad_file_names_all_that_is_wrong(tmp_path):
    weights = golden.state_dict(resnest_jax.create_model(NAME))
    weights["layer9.0.conv1.weight"] = weights.pop("layer1.0.conv1.weight")
    weights["bn1.bias"] = weights["bn1.bias"][:3]
    path = tmp_path / "bad.safetensors"
    safetensors.numpy.save_file(weights, path)
    with pytest.raises(InputError) as error:
        resnest_jax.load_pretrained(NAME, path)
    for words in ("missing: layer1.0.conv1", "unknown: layer9.0", "bn1.bias is (3,), expected"):
        assert words in str(error.value)


def test_head(published_file):
    model, variables = resnest_jax.load_pretrained(NAME, published_file, num_classes=10)
    fresh = variables["params"]["head"]
    assert fresh["kernel"].shape == (2048, 10)
    assert fresh["bias"].shape == (10,)
    np.testing.assert_allclose(np.abs(fresh["kernel"]).max(), 1 / np.sqrt(2048), rtol=0.01)
    init = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    assert_trees_equal(fresh, init["params"]["head"])
    assert jax.tree.structure(variables) == jax.tree.structure(init)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(variables))
    other = resnest_jax.load_pretrained(
        NAME, published_file, num_classes=10, rng=jax.random.key(1)
    )[1]
    assert (other["params"]["head"]["kernel"] != fresh["kernel"]).any()
    whole = resnest_jax.load_pretrained(NAME, published_file)[1]
    np.testing.assert_array_equal(
        variables["params"]["stage4_block1"]["conv3"]["kernel"],
        whole["params"]["stage4_block1"]["conv3"]["kernel"],
    )
    images = golden.images((1, 64, 64), 0)
    assert jax.jit(model.apply)(variables, images).shape == (1, 10)
    model, variables = resnest_jax.load_pretrained(NAME, published_file, num_classes=0)
    assert model.num_classes == 0
    assert "head" not in variables["params"]


def test_a_stored_head_and_stem_are_kept(tmp_path, published_file):
    """Arguments that are left out come from the file, not from defaults."""
    loaded = resnest_jax.load_pretrained(NAME, published_file, num_classes=10, in_channels=1)
    path = tmp_path / "mine.safetensors"
    resnest_jax.save_weights(*loaded[::-1], path)
    model, variables = resnest_jax.load_pretrained(NAME, path)
    assert model == loaded[0]
    assert_trees_equal(variables, loaded[1])
    with pytest.raises(InputError, match="in_channels must be the file's 1; got 3"):
        resnest_jax.load_pretrained(NAME, path, in_channels=3)
    with pytest.raises(InputError, match="in_channels must be a positive integer; got 0"):
        resnest_jax.load_pretrained(NAME, path, in_channels=0)
    with pytest.raises(InputError, match="'folded'"):
        resnest_jax.load_pretrained(NAME, path, norm="folded")


def test_input_channels(published_file):
    images = golden.images((2, 48, 48), 0)
    grey = images[..., :1]
    model, variables = resnest_jax.load_pretrained(NAME, published_file)
    apply = jax.jit(model.apply)
    _, one = resnest_jax.load_pretrained(NAME, published_file, in_channels=1)
    as_rgb = np.repeat(grey, 3, -1)
    np.testing.assert_allclose(apply(one, grey), apply(variables, as_rgb), rtol=1e-3, atol=1e-3)
    _, four = resnest_jax.load_pretrained(NAME, published_file, in_channels=4)
    rgb = variables["params"]["stem"]["conv1"]["kernel"]
    expected = np.stack([rgb[:, :, i % 3] for i in range(4)], 2) * 0.75
    np.testing.assert_allclose(four["params"]["stem"]["conv1"]["kernel"], expected, rtol=1e-6)
    _, six = resnest_jax.load_pretrained(NAME, published_file, in_channels=6)
    twice = np.concatenate([images, images], -1)
    np.testing.assert_allclose(apply(six, twice), apply(variables, images), rtol=1e-3, atol=1e-3)


def test_hub(published_file, monkeypatch):
    import huggingface_hub

    asked = []

    def download(repository, file):
        asked.append((repository, file))
        return str(published_file)

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda url: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    model, variables = resnest_jax.load_pretrained(NAME, dtype=jnp.bfloat16, output_stride=8)
    assert asked == [("timm/resnest14d.gluon_in1k", "model.safetensors")]
    assert model.dtype == jnp.bfloat16
    assert model.output_stride == 8
    assert_trees_equal(variables, golden.build(NAME, {})[1])


def test_hub_out_of_reach(monkeypatch):
    import huggingface_hub

    def download(*_):
        raise huggingface_hub.errors.LocalEntryNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda url: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    message = "fetch https://huggingface.co/timm/resnest50d.in1k/.*resnest50-528c19ca.pth"
    with pytest.raises(InputError, match=message):
        resnest_jax.load_pretrained("resnest50")
    with pytest.raises(InputError, match=r"not on the hub: fetch .*-44938639.pth"):
        resnest_jax.load_pretrained("resnest50_fast_2s1x64d")
    with pytest.raises(InputError, match="no weights are published for 'resnet50'; there are for"):
        resnest_jax.load_pretrained("resnet50")


def test_without_a_network_nothing_is_downloaded(monkeypatch):
    """The download would try again and again; whether the file is there is asked once."""
    import huggingface_hub

    def ask(url):
        raise ConnectionError(f"no route to {url}")

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", ask)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_: pytest.fail("downloaded"))
    with pytest.raises(InputError, match=r"no route to https://huggingface\.co/timm/resnest50d"):
        resnest_jax.load_pretrained("resnest50")


def test_offline(tmp_path):
    """The hub's own client in offline mode, with an empty cache."""
    result = subprocess.run(
        [sys.executable, "-c", "import resnest_jax; resnest_jax.load_pretrained('resnest50')"],
        cwd=helpers.ROOT,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    last = result.stderr.splitlines()[-1]
    assert "InputError: the weights of resnest50 could not be fetched: fetch https" in last


def test_missing_packages_are_named(tmp_path, published_file, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "weights.pth").write_text("x")
    model, variables = golden.build(NAME, {})
    for use in (
        lambda: resnest_jax.load_pretrained(NAME, tmp_path / "weights.pth"),
        lambda: resnest_jax.save_weights(variables, model, tmp_path / "other.pth"),
    ):
        with pytest.raises(InputError, match=r"needs torch: pip install 'resnest_jax\[torch\]'"):
            use()


def test_every_source_is_a_model():
    for name in published.SOURCES:
        resnest_jax.create_model(name)


@helpers.with_whole_run
def test_run_as_source(whole_run, tmp_path):
    workdir, summary = whole_run
    model, variables = resnest_jax.load_pretrained(summary["model"], workdir)
    assert model.num_classes == 10
    assert model.planes == (8, 8, 8, 8)
    images = golden.images((2, 32, 32), 0)
    logits = jax.jit(model.apply)(variables, images)
    assert logits.shape == (2, 10)

    file = tmp_path / "run.safetensors"
    result = convert(f"--input={workdir}", f"--output={file}")
    assert result.returncode == 0, result.stderr
    assert str(len(resnest_jax.to_torch(variables, model))) in result.stdout
    stored = safetensors.numpy.load_file(file)
    assert_trees_equal(resnest_jax.from_torch(stored, model), variables)
    with pytest.raises(InputError, match="are those of resnest14_fast_2s1x64d, not of resnest14"):
        resnest_jax.load_pretrained("resnest14", workdir)


def test_convert_to_a_directory(published_file, tmp_path):
    args = (f"--model={NAME}", f"--input={published_file}", f"--output={tmp_path / 'ours'}")
    result = convert(*args)
    assert result.returncode == 0, result.stderr
    _, variables = resnest_jax.load_pretrained(NAME, tmp_path / "ours")
    assert_trees_equal(variables, resnest_jax.load_pretrained(NAME, published_file)[1])
    again = convert(*args)
    assert again.returncode == 1
    assert "pass --overwrite" in again.stderr
    assert convert(*args, "--overwrite").returncode == 0
    back = convert(f"--input={tmp_path / 'ours'}", f"--output={tmp_path / 'back.safetensors'}")
    assert "10,611,688 parameters" in back.stdout, back.stderr
    before = safetensors.numpy.load_file(published_file)
    after = safetensors.numpy.load_file(tmp_path / "back.safetensors")
    assert {key for key in after if COUNTER not in key} == set(before)
    for key, value in before.items():
        np.testing.assert_array_equal(after[key], value)
    assert not list(tmp_path.glob(".*"))
    nameless = convert(f"--input={published_file}", f"--output={tmp_path / 'x'}")
    assert nameless.returncode == 1
    assert "model is missing" in nameless.stderr


@pytest.mark.parametrize("name", ["no.safetensors", "weights.bin", "text.safetensors"])
def test_files_that_are_not_weights(name, tmp_path):
    (tmp_path / "weights.bin").write_text("x")
    (tmp_path / "text.safetensors").write_text("no weights")
    with pytest.raises(InputError, match=f"weights .*{name}"):
        resnest_jax.load_pretrained(NAME, tmp_path / name)


def test_what_is_not_a_directory_of_weights(tmp_path, published_file):
    with pytest.raises(InputError, match=r"neither config\.json .* nor model\.json"):
        resnest_jax.load_pretrained(NAME, tmp_path)
    with pytest.raises(InputError, match="is not a directory of weights and is left alone"):
        formats.write_directory(tmp_path, {"name": NAME}, {})
    (tmp_path / "config.json").write_text('{"model": {}}')
    with pytest.raises(InputError, match=r"config\.json must hold the keys of a config; got"):
        resnest_jax.load_pretrained(None, tmp_path)
    (tmp_path / "config.json").write_text('{"model": {"name": "resnest14"}}')
    with pytest.raises(InputError, match="holds no checkpoint yet"):
        resnest_jax.load_pretrained(None, tmp_path)
    (tmp_path / "model.json").write_text('{"name": "resnest14"}')
    with pytest.raises(InputError, match="weights holds no params and batch_stats"):
        resnest_jax.load_pretrained(None, tmp_path)


def test_where_nothing_can_be_written(tmp_path):
    model, variables = golden.build(NAME, {})
    (tmp_path / "folder.safetensors").mkdir()
    for path, words in (
        ("weights.bin", "path must end in one of .safetensors"),
        (
            "no/weights.safetensors",
            "weights .*no/weights.safetensors cannot be written: No such file",
        ),
        ("folder.safetensors", "weights .*folder.safetensors cannot be written: Is a directory"),
    ):
        with pytest.raises(InputError, match=words):
            resnest_jax.save_weights(variables, model, tmp_path / path)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.safetensors"]
