"""Damaged checkpoints: every file, cut, with a bit flipped or deleted."""

import json
import shutil

import jax
import numpy as np
import pixel_task
import pytest

from resnest_jax.errors import StorageError
from resnest_jax.training.checkpoints import Checkpoints
from resnest_jax.training.checksums import CHANGING, FILE, find_damage, write_checksums
from resnest_jax.training.metric_writer import read_metrics
from resnest_jax.training.state import abstract_state


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run with its last two checkpoints, of steps 18 and 24."""
    workdir = tmp_path_factory.mktemp("whole")
    pixel_task.train(workdir)
    return workdir


def files_of(folder):
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in files if path.name not in CHANGING)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 4
    path.write_bytes(content)


def restore(workdir, which="last"):
    run = pixel_task.make_run()
    checkpoints = Checkpoints(workdir, keep_last=2, best_metric="eval_score", read_only=True)
    with checkpoints:
        return checkpoints.restore(abstract_state(run), which)[0]


def delete(path):
    path.unlink()


@pytest.mark.parametrize("damage", [cut, flip, delete])
def test_every_damaged_file_is_found(damage, whole, tmp_path):
    source = whole / "checkpoints" / "24"
    assert find_damage(source) is None
    assert (source / FILE).exists()
    for i, path in enumerate(files_of(source)):
        copy = shutil.copytree(source, tmp_path / str(i))
        name = str(path.relative_to(source))
        damage(copy / name)
        found = find_damage(copy)
        if name == FILE and damage is delete:
            assert found is None  # as of a version that wrote none
        else:
            assert found is not None, name
            assert name == FILE or name in found


@pytest.mark.parametrize("name", ["state/manifest.ocdbt", "progress/metadata", FILE])
def test_run_resumes_from_the_checkpoint_before_a_damaged_one(name, whole, tmp_path, capsys):
    workdir = shutil.copytree(whole, tmp_path / "run")
    flip(workdir / "checkpoints" / "24" / name)
    assert int(restore(workdir).step) == 18
    before = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
    pixel_task.train(workdir)
    assert "checkpoints/24 is damaged: " in capsys.readouterr().out
    assert read_metrics(workdir)[-1] == before
    states = [restore(folder) for folder in (workdir, whole)]
    jax.tree.map(np.testing.assert_array_equal, *jax.device_get(states))
    names = {path.name.split("-")[0] for path in (workdir / "checkpoints").iterdir()}
    assert names == {"18", "24", "24.damaged"}


def test_damage_of_a_checkpoint_that_is_asked_for_is_an_error(whole, tmp_path):
    workdir = shutil.copytree(whole, tmp_path / "run")
    flip(workdir / "checkpoints" / "24" / "state" / "_METADATA")
    with pytest.raises(StorageError, match=r"checkpoints/24 is damaged: state/_METADATA"):
        restore(workdir, "24")
    flip(workdir / "checkpoints" / "18" / "state" / "_METADATA")
    with pytest.raises(StorageError, match=r"no checkpoint in .* is complete; delete the folder"):
        restore(workdir)


def test_checksums_of_a_folder_are_of_all_its_files(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_bytes(b"1")
    write_checksums(tmp_path)
    assert list(json.loads((tmp_path / FILE).read_text())) == ["a/b"]
