"""Files of weights as people have them, and files that are none."""

import argparse
import os
import pathlib
import sys
import types
import zipfile
from collections import OrderedDict

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import resnest_jax
from resnest_jax.errors import InputError

NAME = "resnest14"
FIELDS = {"planes": (8, 8, 8, 8), "stem_width": 4, "num_classes": 3}


@pytest.fixture(scope="module")
def weights():
    """Return the torch state dictionary of a tiny model, each value drawn."""
    model = resnest_jax.create_model(NAME, **FIELDS)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(np.float32), shapes)
    return resnest_jax.to_torch(variables, model)


def assert_read(path, weights):
    """Check that a file is read as these weights."""
    model, variables = resnest_jax.load_pretrained(NAME, path, **FIELDS)
    for key, value in resnest_jax.to_torch(variables, model).items():
        np.testing.assert_array_equal(value, weights[key], err_msg=key)


def message(path, **fields):
    """Return the message of the error of reading a file."""
    with pytest.raises(InputError) as error:
        resnest_jax.load_pretrained(NAME, path, **FIELDS | fields)
    text = str(error.value)
    assert "\n" not in text
    assert len(text) < 500
    return text


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "model.", "backbone.", "encoder.", "module._orig_mod."]
)
def test_prefixes(tmp_path, weights, prefix):
    path = tmp_path / "model.SAFETENSORS"
    safetensors.numpy.save_file({prefix + key: value for key, value in weights.items()}, path)
    assert_read(path, weights)


def test_of_several_networks_none_is_chosen(tmp_path, weights):
    path = tmp_path / "both.safetensors"
    both = {f"{name}.{key}": v for name in ("student", "teacher") for key, v in weights.items()}
    safetensors.numpy.save_file(both, path)
    assert "several networks, under 'student.', 'teacher.'" in message(path)


def test_names_beside_the_prefix_are_unknown(tmp_path, weights):
    path = tmp_path / "more.safetensors"
    more = {f"model.{key}": value for key, value in weights.items() if key != "fc.bias"}
    safetensors.numpy.save_file(more | {"queue": np.ones(2, np.float32)}, path)
    assert "missing: fc.bias; unknown: queue" in message(path)


def test_messages_are_short(tmp_path, weights):
    path = tmp_path / "other.safetensors"
    safetensors.numpy.save_file({f"x{key}": value for key, value in weights.items()}, path)
    text = message(path)
    # Without a known head the new one is not missing.
    wanted = [k for k in weights if "num_batches_tracked" not in k and not k.startswith("fc.")]
    assert f"missing: {', '.join(wanted[:3])}, ... ({len(wanted)} in all)" in text


def test_half_precision(tmp_path, weights):
    torch = pytest.importorskip("torch")
    import safetensors.torch

    for dtype in (torch.bfloat16, torch.float16):
        half = {key: torch.tensor(value).to(dtype) for key, value in weights.items()}
        rounded = {key: value.float().numpy() for key, value in half.items()}
        for path, save in (
            (tmp_path / "half.safetensors", safetensors.torch.save_file),
            (tmp_path / "half.bin", torch.save),
        ):
            save(half, path)
            assert_read(path, {key: value * (value != 0) for key, value in rounded.items()})


class Callback:
    """A class of a package that is gone when the file is read."""


Callback.__module__ = "pytorch_lightning"


@pytest.mark.parametrize("old", [False, True], ids=["zip", "pickle"])
def test_training_checkpoints(tmp_path, weights, monkeypatch, old):
    torch = pytest.importorskip("torch")
    package = types.ModuleType("pytorch_lightning")
    package.Callback = Callback
    tensors = OrderedDict((key, torch.tensor(value)) for key, value in weights.items())
    for name, place in (
        ("model_best.pth.tar", {"state_dict": tensors}),
        ("pytorch_model.bin", {"model": {f"module.{k}": v for k, v in tensors.items()}}),
        ("last.CKPT", {"ema": {"module": tensors}}),
        ("weights", tensors),
    ):
        extras = {
            "args": argparse.Namespace(lr=0.1, path=pathlib.PurePosixPath("x")),
            "best": np.float64(81.0),
            "rng": np.random.default_rng(0).integers(0, 9, 4),
            "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(2)}}, "param_groups": []},
            "callbacks": Callback(),
            "epoch": 3,
        }
        content = place if place is tensors else extras | place
        with monkeypatch.context() as installed:
            installed.setitem(sys.modules, "pytorch_lightning", package)
            torch.save(content, tmp_path / name, _use_new_zipfile_serialization=not old)
        assert_read(tmp_path / name, weights)


class Attack:
    """Run a command when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_code_is_refused_and_not_run(tmp_path, weights):
    torch = pytest.importorskip("torch")
    tensors = {key: torch.tensor(value) for key, value in weights.items()}
    for old in (False, True):
        path = tmp_path / f"attack{old}.pth"
        content = {"state_dict": tensors, "args": Attack(tmp_path / "run")}
        torch.save(content, path, _use_new_zipfile_serialization=not old)
        assert "mkdir), and is not read" in message(path)
        assert not (tmp_path / "run").exists()
    torch.save({"model": torch.nn.Linear(2, 2)}, tmp_path / "module.pt")
    assert "save model.state_dict() alone" in message(tmp_path / "module.pt")
    torch.save({"step": 3, "model": [1, 2]}, tmp_path / "none.pt")
    assert "holds no state dictionary" in message(tmp_path / "none.pt")
    torch.save(tensors | {"epoch": 3}, tmp_path / "mixed.pt")
    assert "epoch of its state dictionary is of type int" in message(tmp_path / "mixed.pt")


def test_bad_numbers_are_counted(tmp_path, weights):
    path = tmp_path / "bad.safetensors"
    for key, value, words in (
        ("layer1.0.conv1.weight", np.int8, "layer1.0.conv1.weight is of dtype int8"),
        ("layer4.0.bn3.weight", np.nan, "layer4.0.bn3.weight has 32 of 32 values that are NaN"),
        ("bn1.running_var", np.inf, "bn1.running_var has 8 of 8 values that are NaN or infinite"),
    ):
        array = weights[key]
        bad = array.astype(value) if value is np.int8 else np.full_like(array, value)
        safetensors.numpy.save_file(weights | {key: bad}, path)
        assert words in message(path)


def test_other_files_are_named(tmp_path, weights):
    whole = tmp_path / "whole.safetensors"
    safetensors.numpy.save_file(weights, whole)
    with zipfile.ZipFile(tmp_path / "photos.pth", "w") as archive:
        archive.writestr("cat.jpg", "x")
    zipped = (tmp_path / "photos.pth").read_bytes()
    for name, content, words in (
        ("lfs.safetensors", b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS pointer"),
        ("page.pth", b"\n<!DOCTYPE html><html>404", "is a web page"),
        ("page.bin", b"<html>", "is a web page"),
        ("empty.pth", b"", "is empty; fetch the file again"),
        ("cut.safetensors", whole.read_bytes()[:-100], "is no whole safetensors file"),
        ("cut.pth", zipped[:-30], "is damaged or cut off"),
        ("photos.pth", zipped, "a zip archive of cat.jpg"),
        ("weights.h5", b"\x89HDF\r\n", "an HDF5 file"),
        ("text.bin", b"hello", "neither safetensors nor a PyTorch checkpoint"),
    ):
        (tmp_path / name).write_bytes(content)
        assert words in message(tmp_path / name), name
    whole.rename(tmp_path / "wrong_name.pth")
    assert_read(tmp_path / "wrong_name.pth", weights)
