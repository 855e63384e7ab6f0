"""Early stopping of the task of tests/pixel_task.py, with given values of its metric."""

import jax
import pixel_task
import pytest

from resnest_jax.training import loop
from resnest_jax.training.metric_writer import MetricsWriter, read_metrics
from resnest_jax.training.patience import Patience

SCORES = {6: 0.5, 12: 0.6, 18: 0.6, 24: 0.7}


@pytest.fixture(autouse=True)
def _scores(monkeypatch):
    def make_evaluate(run):
        return lambda state: {"eval_score": SCORES[int(jax.device_get(state.step))]}

    monkeypatch.setattr(loop, "make_evaluate", make_evaluate)


def test_a_killed_run_stops_at_the_same_step_and_continues_with_more_patience(
    tmp_path, monkeypatch, capsys
):
    message = "stopped early after step 18 of 24: no better eval_score than 0.6000 in 1 evaluation"
    summary = pixel_task.train(tmp_path / "whole", patience=1)
    assert message in capsys.readouterr().out
    assert (summary["step"], summary["stopped_early"]) == (18, True)
    assert summary["best_eval_score"] == 0.6
    assert (tmp_path / "whole" / "checkpoints" / "18").is_dir()

    def killed(self, step, metrics, original=MetricsWriter.write):
        original(self, step, metrics)
        if step == 18:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(MetricsWriter, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            pixel_task.train(tmp_path / "killed", patience=1)
    for name in ("killed", "whole"):  # the second has stopped before
        again = pixel_task.train(tmp_path / name, patience=1)
        assert again | {"seconds": 0} == summary | {"seconds": 0}
        assert message in capsys.readouterr().out
    assert read_metrics(tmp_path / "killed") == read_metrics(tmp_path / "whole")

    longer = pixel_task.train(tmp_path / "whole", patience=2)
    assert (longer["step"], longer["stopped_early"]) == (24, False)
    assert "stopped early" not in capsys.readouterr().out


def test_only_evaluations_in_a_row_count():
    patience = Patience(2)
    for value, over in ((0.5, False), (0.4, False), (0.6, False), (0.6, False), (0.1, True)):
        patience.add(value)
        assert patience.over == over
        patience = Patience(2, **patience.snapshot())
    never = Patience(0, best=1.0, waited=1000)
    assert not never.over
