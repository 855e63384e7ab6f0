"""Runs of version 0.1.0 still work: the goldens ``run_v0*``."""

import json
import shutil

import golden
import jax
import numpy as np
import pytest

import resnest_jax
from resnest_jax import runs
from resnest_jax.errors import InputError
from resnest_jax.tasks.classification import evaluate
from resnest_jax.training import variables as stored_variables
from resnest_jax.training.metric_writer import read_metrics
from resnest_jax.weights.card import read_card
from resnest_jax.workdir import load_config

RUNS = ["run_v0", "run_v0_head"]


@pytest.mark.parametrize("name", RUNS)
def test_old_run_evaluates_to_the_same_figures(name):
    folder = golden.FOLDER / name
    summary = json.loads((folder / "summary.json").read_text())
    found = evaluate.run(None, str(folder))
    assert found["step"] == 12
    assert found["eval_top1"] == summary["eval_top1"]
    np.testing.assert_allclose(found["eval_loss"], summary["eval_loss"], rtol=1e-5)
    assert evaluate.run(None, str(folder), "6")["step"] == 6


@pytest.mark.parametrize("name", RUNS)
def test_old_run_resumes(name, tmp_path):
    """From its first checkpoint, with its old metrics; floats differ between CPUs."""
    workdir = shutil.copytree(golden.FOLDER / name, tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints" / "12")
    config = load_config(workdir)
    runs.train(config, workdir)
    assert read_card(workdir).class_names == tuple("0123456789")  # stored from now on
    for line, before in zip(read_metrics(workdir), read_metrics(golden.FOLDER / name), strict=True):
        assert line.keys() == before.keys()
        for key in line.keys() & {"step", "epoch", "loss", "learning_rate", "eval_loss"}:
            np.testing.assert_allclose(line[key], before[key], rtol=1e-3, err_msg=key)


@pytest.mark.parametrize("name", RUNS)
def test_old_run_gives_its_weights(name):
    model, variables = resnest_jax.load_pretrained(None, golden.FOLDER / name)
    assert model.num_classes == 10
    assert model.planes == (8, 8, 8, 8)
    state_dict = resnest_jax.to_torch(variables, model)
    again = resnest_jax.from_torch(state_dict, model)
    jax.tree.map(np.testing.assert_array_equal, variables, again)


def test_evaluation_refuses_values_that_are_not_finite(monkeypatch):
    restore = stored_variables.restore_variables

    def diverged(folder):
        variables = restore(folder)
        variables["params"]["stem"]["bn1"]["scale"] = np.full(4, np.nan, np.float32)
        return variables

    monkeypatch.setattr(stored_variables, "restore_variables", diverged)
    with pytest.raises(InputError, match=r"conv1.1.weight has 4 of 4 values that are NaN"):
        evaluate.run(None, str(golden.FOLDER / "run_v0"))
