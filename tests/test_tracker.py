"""Weights & Biases, with a module in its place that notes what it is given."""

import json
import sys
import types

import helpers
import pixel_task
import pytest

from resnest_jax import recipe, runs
from resnest_jax.errors import InputError
from resnest_jax.training import metric_writer
from resnest_jax.training.metric_writer import MetricsWriter, read_metrics
from resnest_jax.training.tracker import open_wandb


class FakeRun:
    """What ``wandb.init`` returns."""

    def __init__(self, **arguments):
        self.arguments, self.logged, self.axes, self.exit_code = arguments, [], {}, None

    def define_metric(self, name, step_metric=None):
        self.axes[name] = step_metric

    def log(self, data):
        self.logged.append(data)

    def finish(self, exit_code):
        self.exit_code = exit_code


@pytest.fixture
def opened(monkeypatch):
    """The runs that have been opened."""
    found = []

    def init(**arguments):
        found.append(FakeRun(**arguments))
        return found[-1]

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    return found


def test_a_resumed_run_keeps_its_id_and_the_metrics_are_those_of_the_file(opened, tmp_path):
    config = recipe.build(helpers.tiny_config(tracker="wandb")).tracker.keywords["config"]
    assert json.loads(json.dumps(config))["optimizer"]["name"] == "sgd"
    with MetricsWriter(tmp_path, 0, tracker=lambda workdir: open_wandb(workdir, config)) as writer:
        writer.write(1, {"loss": 2.0})
        writer.write_others(1, {"images_per_second": 9.0})

    def interrupted():
        with MetricsWriter(
            tmp_path, 1, tracker=lambda workdir: open_wandb(workdir, config)
        ) as writer:
            writer.write(2, {"loss": 1.0})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    first, second = opened
    assert first.arguments == second.arguments
    assert first.arguments["resume"] == "allow"
    assert len(first.arguments["id"]) == 8
    assert (first.arguments["name"], first.arguments["config"]) == (tmp_path.name, config)
    assert first.axes == {"step": None, "*": "step"}
    assert first.logged == [{"step": 1, "loss": 2.0}, {"step": 1, "images_per_second": 9.0}]
    assert second.logged == [{"step": 2, "loss": 1.0}]
    assert (first.exit_code, second.exit_code) == (0, 1)
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}]


def test_the_loop_opens_it(opened, tmp_path):
    pixel_task.train(tmp_path, tracker=lambda workdir: open_wandb(workdir, {}))
    logged = [line for line in opened[0].logged if "images_per_second" not in line]
    assert logged == read_metrics(tmp_path)


def test_other_processes_do_not_open_it(opened, tmp_path, monkeypatch):
    monkeypatch.setattr(metric_writer, "is_main", lambda: False)
    with MetricsWriter(tmp_path, 0, tracker=lambda workdir: open_wandb(workdir, {})) as writer:
        writer.write(1, {"loss": 2.0})
    assert opened == []
    assert list(tmp_path.iterdir()) == []


def test_what_is_missing_is_named_at_start(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match=r"needs wandb: pip install 'resnest_jax\[wandb\]'"):
        runs.train(helpers.tiny_config(tracker="wandb"), tmp_path / "run")
    with pytest.raises(InputError, match=r"tracker must be one of .*; got 'mlflow'"):
        runs.train(helpers.tiny_config(tracker="mlflow"), tmp_path / "run")
    assert not (tmp_path / "run").exists()

    def init(**_):
        raise RuntimeError("api_key not\nconfigured")

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    with pytest.raises(InputError, match=r"does not start: api_key not configured; .*offline"):
        open_wandb(tmp_path, {})
