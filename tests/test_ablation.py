"""The ablation: parsing of cells, failed, killed and submitted sweeps, statistics."""

import csv
import importlib.util
import json
import math
import shutil
import subprocess
import sys
import time

import commands
import helpers
import numpy as np
import pytest
from scipy import stats

from experiments.ablation import costs, grid, report, significance, sweep
from experiments.ablation.grid import Cell
from resnest_jax import config
from resnest_jax.errors import InputError

# Runs of six steps.
SWEEP = [
    "--config=configs/digits.py",
    "--config.model.planes=(8, 8, 8, 8)",
    "--config.model.stem_width=4",
    "--config.epochs=1.0",
    "--config.batch_size=240",
    "--config.eval_every_epochs=0.5",
    "--config.log_every_steps=1",
    "--grid=0s1x64d",
    "--seeds=2",
    "--image_size=32",
    "--batch_size=8",
    "--repeats=2",
]
DOES = "--axis=optimizer.base_learning_rate=0.4"
FAILS = f"{DOES},1e30"  # diverges
GOOD, BAD = (f"0s1x64d optimizer.base_learning_rate={rate}" for rate in (0.4, 1e30))

# One worker runs them all: they share a fixture that takes long.
pytestmark = pytest.mark.xdist_group("ablation")


def run(*args):
    """Run a sweep in the repository to its end."""
    return commands.run("experiments.ablation", *args, devices=1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted sweep with a cell that fails: its directory and its output."""
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, run(*SWEEP, FAILS, f"--workdir={workdir}")


@pytest.fixture(scope="module")
def again(whole, tmp_path_factory):
    """The same without the failing cell, in a copy in which all runs are finished."""
    workdir = tmp_path_factory.mktemp("again") / "copy"
    shutil.copytree(whole[0], workdir)
    return workdir, run(*SWEEP, DOES, f"--workdir={workdir}")


def with_costs(workdir, whole):
    """Prepare a directory for a sweep of the same model that does not measure costs again."""
    workdir.mkdir(exist_ok=True)
    stored = json.loads((whole[0] / "costs.json").read_text())
    stored["asked"]["models"].pop(BAD)
    (workdir / "costs.json").write_text(json.dumps(stored))
    return workdir


def assert_same_results(one, other):
    for name in ("results.csv", "results.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes()


def test_a_failed_cell_stops_no_other(whole):
    workdir, result = whole
    assert result.returncode == 1, result.stderr
    rows = list(csv.DictReader((workdir / "results.csv").read_text().splitlines()))
    runs = [(row["cell"], row["seed"]) for row in rows]
    assert runs == [(GOOD, "0"), (BAD, "0"), (GOOD, "1"), (BAD, "1")]
    for row in rows:
        if row["cell"] == GOOD:
            assert row["error"] == ""
            assert 0 <= float(row["eval_top1"]) <= 1
            assert row["step"] == "6"
            assert "jax" in row["versions"]
            assert row["device"]
        else:
            assert row["error"].startswith("DivergenceError: step ")
    assert len({row["config"] for row in rows}) == 2
    for log in workdir.glob("runs/*/*/log.txt"):
        assert "Fatal" not in log.read_text()
    table = (workdir / "table.md").read_text()
    assert f"- {BAD}, seed 0: DivergenceError: step " in table
    assert f"| {BAD} | 0 | failed |" in table
    assert "[4/4 runs" in result.stdout
    for name in ("tradeoff.png", "curves.png"):
        assert (workdir / name).read_bytes().startswith(b"\x89PNG")


def test_a_finished_run_is_not_done_again(whole, again):
    assert again[1].returncode == 0
    assert "2 already done" in again[1].stdout
    assert "started" not in again[1].stdout
    for path in whole[0].glob("runs/*/*/metrics.jsonl"):
        copy = again[0] / path.relative_to(whole[0])
        assert path.stat().st_mtime_ns == copy.stat().st_mtime_ns


def test_a_killed_sweep_comes_to_the_same(whole, again, tmp_path):
    process = subprocess.Popen(
        [
            *[sys.executable, "-m", "experiments.ablation"],
            *[*SWEEP, DOES, f"--workdir={with_costs(tmp_path, whole)}"],
        ],
        cwd=helpers.ROOT,
        env=commands.environment(devices=1),
        stdout=subprocess.DEVNULL,
    )
    # Halfway: the second run has written its first evaluation.
    deadline = time.monotonic() + 240
    while not any("eval" in path.read_text() for path in tmp_path.glob("runs/*/seed_1/*.jsonl")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert not (tmp_path / "results.csv").exists()
    result = run(*SWEEP, DOES, f"--workdir={tmp_path}")
    assert result.returncode == 0
    assert "1 already done" in result.stdout
    assert_same_results(tmp_path, again[0])


@pytest.mark.skipif(not importlib.util.find_spec("submitit"), reason="needs submitit")
def test_submitit_comes_to_the_same(whole, again, tmp_path):
    workdir = with_costs(tmp_path, whole)
    result = run(*SWEEP, DOES, f"--workdir={workdir}", "--executor=local", "--jobs=2")
    assert result.returncode == 0, result.stderr
    assert_same_results(tmp_path, again[0])
    assert len(list((tmp_path / "submitit").glob("*_result.pkl"))) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--grid=2s1x"], ["'2s1x' is not a cell", "RsKxDd"]),
        (["--grid=2s3x1d"], ["cell 2s3x1d", "groups must divide"]),
    ],
)
def test_bad_grids_are_one_line(arguments, words, tmp_path):
    result = run("--config=configs/digits.py", f"--workdir={tmp_path}/sweep", *arguments)
    commands.assert_one_line(result, *words)
    assert not (tmp_path / "sweep").exists()  # nothing ran


@pytest.mark.parametrize(
    ("axis", "message"),
    [
        ("epochs", "'epochs' must be KEY=VALUE"),
        ("epochs=", "must be KEY=VALUE"),
        ("epoch=5", "has no key 'epoch'"),
        ("model.name.x=5", "has no key"),
        ("batch_size=many", "batch_size must be an integer; got 'many'"),
        ("model.attentoin=se", "cell 2s1x64d .*: config.model has no key 'attentoin'"),
        ("model.planes=5", "planes"),
        ("epochs=5,5", "appears twice"),
    ],
)
def test_bad_axes(axis, message):
    def configs():
        cells = grid.parse_grid(["2s1x64d"], [axis], None)
        return [grid.cell_config(helpers.load_config("digits"), cell) for cell in cells]

    with pytest.raises(InputError, match=message):
        configs()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["2s1x64d", "2s1x64d"], "cell 2s1x64d appears twice"),
        (["s1x64d"], "'s1x64d' is not a cell"),
        ([], "--grid or --preset must name"),
    ],
)
def test_bad_words(words, message):
    with pytest.raises(InputError, match=message):
        grid.parse_grid(words, [], None)


def test_cells_are_the_product_of_grid_and_axes():
    cells = grid.parse_grid(["0s1x64d", "seresnet50"], ["epochs=5,10;mix.mixup=0.0,0.2"], None)
    assert [cell.name for cell in cells[:3]] == [
        "0s1x64d epochs=5 mix.mixup=0.0",
        "0s1x64d epochs=5 mix.mixup=0.2",
        "0s1x64d epochs=10 mix.mixup=0.0",
    ]
    assert len(cells) == 8
    assert len({cell.folder for cell in cells}) == 8
    config = grid.cell_config(helpers.load_config("digits"), cells[3])
    assert (config.epochs, config.mix.mixup) == (10.0, 0.2)
    assert config.model.name == "resnest14_fast_0s1x64d"
    assert config.model.stem_width == 16  # not in an axis: from the recipe
    config = grid.cell_config(helpers.load_config("digits"), cells[-1])
    assert config.model.name == "seresnet50"


@pytest.mark.parametrize("preset", grid.PRESETS)
def test_presets_are_models_of_the_recipe(preset):
    config = helpers.load_config("digits")
    cells = grid.parse_grid([], [], preset)
    configs = [grid.cell_config(config, cell) for cell in cells]
    assert len({grid.config_hash(c) for c in configs}) == len(cells) == 5


def test_config_hash_is_of_what_changes_a_result():
    config = helpers.load_config("digits")
    before = grid.config_hash(config)
    config.seed, config.loader.workers, config.checkpoint.keep_last = 5, 3, 7
    assert grid.config_hash(config) == before
    config.optimizer.momentum = 0.8
    assert grid.config_hash(config) != before


def test_config_hash_outlives_new_keys(monkeypatch):
    recipe = helpers.load_config("digits")
    before = grid.config_hash(recipe)
    keys = config.common_keys
    monkeypatch.setattr(config, "common_keys", lambda: keys() | {"new": 3})
    assert grid.config_hash(recipe) == before
    assert grid.config_hash({"new": 4, **recipe.to_dict()}) != before


def test_seeds_begin_with_the_recipes(tmp_path):
    config = helpers.load_config("digits")
    config.seed = 7
    cells = grid.parse_grid(["1s1x64d"], [], None)
    jobs = sweep.make_jobs(cells, {"1s1x64d": grid.cell_config(config, cells[0])}, 2, tmp_path)
    assert [(job.seed, job.config["seed"], job.folder.name) for job in jobs] == [
        (7, 7, "seed_7"),
        (8, 8, "seed_8"),
    ]


def by_seed(values):
    return dict(enumerate(values))


def test_two_cells_are_compared_as_by_scipy():
    rng = np.random.default_rng(0)
    one, other = rng.normal(80, 1, 5), rng.normal(81, 1, 5)
    results = {"one": by_seed(one), "other": by_seed(other)}
    (comparison,) = significance.compare(results, "other")
    expected = stats.ttest_rel(one, other)
    assert comparison.p == comparison.p_pair == pytest.approx(expected.pvalue)
    interval = expected.confidence_interval()
    assert 2 * comparison.margin == pytest.approx(interval.high - interval.low)


def test_noise_is_that_of_a_linear_model():
    """The residual variance of accuracy ~ cell + seed, fitted by least squares."""
    rng = np.random.default_rng(1)
    table = rng.normal(80, 1, (4, 3)) + rng.normal(0, 3, (1, 3))
    found = significance.noise(
        {str(i): by_seed(row) for i, row in enumerate(table)}, range(table.shape[1])
    )
    cells, seeds = (index.ravel() for index in np.indices(table.shape))
    design = np.concatenate([np.eye(4)[cells], np.eye(3)[seeds]], 1)
    solution = np.linalg.lstsq(design, table.ravel(), rcond=None)[0]
    squares = np.sum((table.ravel() - design @ solution) ** 2)
    degrees = table.size - np.linalg.matrix_rank(design)
    assert found.degrees == degrees
    assert found.sd == pytest.approx(np.sqrt(squares / degrees))


def test_accuracies_without_noise_are_not_certain():
    quiet = significance.Noise(0.0, 2)
    assert significance.block_test([0.28, 0.28, 0.28], quiet) == (0.0, 0.25)
    assert significance.block_test([0.0, 0.0], quiet) == (0.0, 1.0)
    assert significance.block_test([3.0], significance.Noise(math.inf, 0)) == (math.inf, 1.0)


def test_many_comparisons_widen_margin_and_p_alike():
    """Where the difference is the margin, p is the level."""
    noise = significance.Noise(0.6, 10)
    margin, _ = significance.block_test([1.0, 1.0], noise, comparisons=5)
    assert margin == pytest.approx(0.6 * stats.t.ppf(0.995, 10))  # error 0.6 * sqrt(2 / 2)
    assert significance.block_test([margin] * 2, noise, 5)[1] == pytest.approx(0.05)


def test_noise_is_seldom_a_finding():
    rng = np.random.default_rng(0)
    false_findings = 0
    for _ in range(400):
        seeds = rng.normal(size=3)  # some seeds are good for all cells
        results = {str(i): by_seed(seeds + rng.normal(size=3)) for i in range(5)}
        false_findings += any(c.shown for c in significance.compare(results, "0"))
    assert false_findings < 36  # of 400: at most 20 expected, with a spread of 4.4


def test_a_difference_beyond_noise_is_shown_and_stated():
    results = {
        "base": by_seed([80.0, 81.0, 80.5]),
        "noise": by_seed([81.0, 80.2, 80.6]),
        "better": by_seed([84.0, 85.1, 84.4]),
        "cut short": {1: 99.0},
        "lacks one": {0: 80.1, 2: 80.4},
    }
    noise, better, short, lacking = significance.compare(results, "base")
    assert not noise.shown
    assert "no difference shown" in significance.statement(noise, "base")
    assert better.shown
    assert "better: higher (+4.00" in significance.statement(better, "base")
    assert not short.shown
    assert "no test" in significance.statement(short, "base")
    assert lacking.seeds == 2
    assert not lacking.shown
    assert "4 degrees of freedom" in significance.power_note(results, "base")


def test_costs_are_measured_once_per_model(tmp_path):
    small = {"name": "resnest14", "planes": [8, 8, 8, 8], "stem_width": 4, "num_classes": 10}
    models = {"a": small, "a again": dict(small)}
    setting = costs.Setting(32, 2, 2)
    measured, device = costs.measure(models, setting, tmp_path / "costs.json")
    assert measured["a"] == measured["a again"]
    assert measured["a"]["params"] == 12_614
    low, median, high = measured["a"]["train"]
    assert 0 < low <= median <= high
    assert measured["a"]["train_ratio"] == 1
    assert measured["a"]["train_mb"] is None or measured["a"]["train_mb"] > 0
    again = costs.measure(models, setting, tmp_path / "costs.json")
    assert again == (measured, device)  # equal to the last digit: not measured again
    table = report.cost_table(measured, setting, device)
    assert "| a | 12,614 | 0.000339 | 0.00033 |" in table


def test_published_figures_are_given_for_the_papers_models_only():
    cells = grid.parse_grid([], [], "radix")
    models = {cell.name: grid.cell_model_fields(cell, grid.FAMILY) for cell in cells}
    table = report.published_tables(models)
    assert "| 2s1x64d | 27,483,240 | 4.34 | 80.64 | 533.0 | 0.77 |" in table
    assert "not measured here" in table
    assert "tricks" not in table
    one = models["2s1x64d"]
    assert report.published_tables({"x": one | {"drop_block": 0.1, "num_classes": 1000}})
    for changed in ({"num_classes": 10}, {"avd_first": False}, {"stem_width": 64}):
        assert report.published_tables({"x": one | changed}) == ""


def test_the_papers_tricks():
    names = {cell.name: {"name": "resnest14"} for cell in grid.PRESETS["tricks"]}
    table = report.published_tables(names)
    assert "| ResNet-D | 78.31 |" in table
    assert "| split attention | 81.13 |" in table


def test_without_a_recipe_only_the_model_counts():
    cell = Cell("x", "2s1x64d", {"epochs": 3.0, "model.avd_first": False})
    fields = grid.cell_model_fields(cell, grid.FAMILY)
    assert fields == {"name": "resnest50_fast_2s1x64d", "avd_first": False}


def test_cells_that_are_the_same_run_are_refused():
    config = helpers.tiny_config()
    cells = grid.parse_grid(["1s1x64d"], ["epochs=5,5.0"], None)
    configs = {cell.name: grid.cell_config(config, cell) for cell in cells}
    with pytest.raises(InputError, match=r"'.*epochs=5' and '.*epochs=5.0' are the same run"):
        grid.refuse_twins(configs)


def test_results_hold_every_run(tmp_path):
    rows = [
        {"cell": "a", "seed": 0, "config": "x", "error": "", "eval_top1": 0.5, "step": 3},
        {"cell": "b, c", "seed": 0, "config": "y", "error": "it broke"},
    ]
    report.write_results(rows, {"seeds": 1}, tmp_path)
    read = list(csv.DictReader((tmp_path / "results.csv").read_text().splitlines()))
    assert [row["cell"] for row in read] == ["a", "b, c"]
    assert read[1]["error"] == "it broke"
    assert json.loads((tmp_path / "results.json").read_text())["runs"] == rows
