"""The dry run, and the commands that preview batches and prepare data."""

import json
import math

import helpers
import jax
import matplotlib.image
import numpy as np
import pytest
from test_commands import QUICK, assert_one_line, run

from resnest_jax import dry_run, recipe
from resnest_jax.errors import InputError
from resnest_jax.tasks.classification import draw


def test_dry_run_reports_and_leaves_no_run(tmp_path):
    result = run("train", *QUICK, f"--workdir={tmp_path}/run", "--dry_run")
    assert result.returncode == 0, result.stderr
    folder = tmp_path / "run" / "dry_run"
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"dry_run"}
    report = json.loads((folder / "report.json").read_text())
    assert report["steps"] == 12
    assert report["train_images"] == 1437
    assert report["input_images_per_second"] > 0
    assert report["step_images_per_second"] > 0
    assert 0 < report["needed_gib"] < report["available_gib"]
    assert 0 <= report["hours"] < 1
    assert json.loads((folder / "config.json").read_text())["epochs"] == 1.0
    assert (folder / "schedule.png").read_bytes().startswith(b"\x89PNG")
    assert "stage4_block1/conv3/kernel" in result.stdout


def test_dry_run_of_growing_images_measures_the_last_size(tmp_path):
    config = helpers.tiny_config(image_size=((0, 32), (1, 40)))
    report = dry_run.dry_run(config, tmp_path)
    assert report["step_images_per_second"] > 0


def test_dry_run_of_what_does_not_fit_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(dry_run, "_device_memory", lambda: 2**20)
    config = helpers.tiny_config(checkpoint__keep_last=10**9)
    with pytest.raises(
        InputError, match=r"GiB on each of 8 device.*lower batch_size 240.*free"
    ) as e:
        dry_run.dry_run(config, tmp_path)
    assert "\n" not in str(e.value)
    assert "lower checkpoint.keep_last" in str(e.value)


def test_dry_run_checks_paths_first(tmp_path):
    missing = f"--config.dataset=folder:{tmp_path}/nowhere"
    result = run("train", *QUICK, f"--workdir={tmp_path}/run", "--dry_run", missing)
    assert_one_line(result, f"{tmp_path}/nowhere")
    weights = f"--config.pretrained.weights={tmp_path}/nothing.safetensors"
    result = run("train", *QUICK, f"--workdir={tmp_path}/run", "--dry_run", weights)
    assert_one_line(result, "pretrained.weights: there is no", f"{tmp_path}/nothing.safetensors")


def test_memory_of_the_state_is_what_its_arrays_take(tmp_path):
    """Twice the parameters (momentum), the statistics and a counter, plus the batch."""
    config = helpers.tiny_config()
    run = recipe.build(config)
    compiled, _ = dry_run.compile_step(run)
    variables = jax.eval_shape(run.task.init, jax.random.key(0))
    params, stats = (
        4 * sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables[name]))
        for name in ("params", "batch_stats")
    )
    batch = 240 // 8 * (32 * 32 * 3 + 4)
    found = compiled.memory_analysis().argument_size_in_bytes
    np.testing.assert_allclose(found, 2 * params + stats + batch, rtol=0.01)


@pytest.mark.parametrize("split", ["train", "eval"])
def test_preview_shows_the_batch(split, tmp_path):
    config = helpers.tiny_config(mix__mixup=0.0, batch_size=16)
    path = tmp_path / "batch.png"
    draw.draw_batch(recipe.build(config), path, split, batch_index=45, step=3)
    picture = matplotlib.image.imread(path)
    assert picture.shape[0] == 480
    assert picture.shape[1] == 1600
    # Digits are grey on black: two rows of eight dark squares on white.
    dark = (picture[..., :3].max(-1) < 0.2).mean()
    assert 0.2 < dark < 0.9


def test_preview_that_cannot_be_written_says_so(tmp_path):
    built = recipe.build(helpers.tiny_config(batch_size=8))
    with pytest.raises(InputError, match=r"output .*nowhere.* cannot be written: No such file"):
        draw.draw_batch(built, tmp_path / "nowhere" / "a.png", "eval")


def test_preview_and_prepare_commands(tmp_path):
    shown = run("preview", "--config=configs/digits.py", f"--output={tmp_path}/a.png", "--count=8")
    assert shown.returncode == 0, shown.stderr
    assert (tmp_path / "a.png").exists()
    prepared = run("prepare", "--dataset=sklearn_digits", f"--data_dir={tmp_path}/tfds")
    assert "1437 images to train on, 360 to evaluate, 10 classes" in prepared.stdout
    assert list((tmp_path / "tfds" / "sklearn_digits").rglob("*.array_record*"))
    imagenet = run("prepare", "--dataset=imagenet2012", f"--data_dir={tmp_path}/tfds")
    assert_one_line(imagenet, "imagenet2012", "ILSVRC2012_img_train.tar")


def test_dry_run_does_not_run_a_slow_step_but_knows_its_memory(tmp_path, monkeypatch):
    measured = dry_run.dry_run(helpers.tiny_config(), tmp_path / "fast")
    monkeypatch.setattr(dry_run, "PEAK_SECONDS", 0)
    monkeypatch.setattr(dry_run, "_measure_step", None)
    bound = dry_run.dry_run(helpers.tiny_config(), tmp_path / "slow")
    assert bound["needed_gib"] == measured["needed_gib"] > 0
    assert "step_images_per_second" not in bound
    assert bound["step_images_per_second_at_most"] > 0


def test_dry_run_of_a_very_slow_step_still_says_the_hours(tmp_path, monkeypatch):
    monkeypatch.setattr(dry_run, "_peak_seconds", lambda lowered: 1e4)  # 0.024 images a second
    report = dry_run.dry_run(helpers.tiny_config(), tmp_path)
    np.testing.assert_allclose(report["hours"], report["steps"] * 1e4 / 3600, rtol=1e-3)
