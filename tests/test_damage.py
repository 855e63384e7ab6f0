"""Files of a run that are damaged, lost or cannot be written; other numbers of devices."""

import dataclasses
import errno
import json
import shutil
import tempfile

import helpers
import jax
import numpy as np
import pixel_task
import pytest
from commands import run as run_command
from jax.sharding import AxisType

from resnest_jax.errors import DivergenceError, InputError, StorageError
from resnest_jax.training.checkpoints import Checkpoints
from resnest_jax.training.evaluation import make_evaluate
from resnest_jax.training.loop import fit
from resnest_jax.training.metric_writer import MetricsWriter, read_metrics
from resnest_jax.training.state import abstract_state, initial_state

LINES = [{"step": step, "epoch": step / 2, "loss": 1 / step} for step in range(1, 7)]
TEXT = "".join(json.dumps(line) + "\n" for line in LINES).encode()
BROKEN = {
    "cut": TEXT[:70],
    "cut between lines": TEXT[: TEXT.index(b"\n") + 1],
    "no line break": TEXT.replace(b"\n", b" ", 1),
    "empty": b"",
    "binary": bytes(range(256)) * 9,
    "not UTF-8": TEXT.replace(b"epoch", b"ep\xffch", 1),
    "a list": TEXT.replace(TEXT.splitlines()[2], b"[1, 2]"),
    "deep": b"[" * 100_000 + b"\n" + TEXT,
    "no step": TEXT.replace(b'"step"', b'"stop"', 1),
    "text": TEXT.replace(b'"loss": 0.5', b'"loss": "x"'),
    "another number": TEXT.replace(b'"loss": 0.5', b'"loss": 1.5'),
    "a line more": TEXT.replace(b"\n", b'\n{"step": 1, "loss": 4.0}\n', 1),
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_damaged_metrics_are_restored_and_kept(content, tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(content)
    with MetricsWriter(tmp_path, 4, LINES[:4]) as writer:
        assert writer.lines == LINES[:4]
    assert read_metrics(tmp_path) == LINES[:4]
    (kept,) = tmp_path.glob("metrics.jsonl.damaged-*")
    assert kept.read_bytes() == content
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{path}: ")
    assert kept.name in line


@pytest.mark.parametrize("end", [b"", b'{"step": 7, "lo'])
@pytest.mark.parametrize("number", ["0.5", "NaN"])
def test_lines_after_the_checkpoint_are_no_damage(end, number, tmp_path, capsys):
    text = TEXT.replace(b'"loss": 0.5', b'"loss": ' + number.encode())
    stored = [json.loads(line) for line in text.splitlines()[:4]]
    (tmp_path / "metrics.jsonl").write_bytes(text + end)
    with MetricsWriter(tmp_path, 4, stored):
        pass
    assert (tmp_path / "metrics.jsonl").read_bytes() == b"".join(text.splitlines(True)[:4])
    assert not capsys.readouterr().out
    assert not list(tmp_path.glob("*damaged*"))


def test_lost_metrics_and_a_folder_in_their_place(tmp_path, capsys):
    with MetricsWriter(tmp_path, 4, LINES[:4]):
        pass
    assert "4 line(s) of steps 1 to 4 were lost" in capsys.readouterr().out
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "metrics.jsonl").mkdir()
    with MetricsWriter(tmp_path, 4, LINES[:4]):
        pass
    assert read_metrics(tmp_path) == LINES[:4]


@pytest.mark.parametrize("content", [None, b"", TEXT])
def test_metrics_that_change_while_the_run_writes(content, tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    with MetricsWriter(tmp_path, 0) as writer:
        for line in LINES:
            if line["step"] == 4:
                path.unlink() if content is None else path.write_bytes(content)
            writer.write(line["step"], {key: line[key] for key in ("epoch", "loss")})
    assert path.read_bytes() == TEXT
    assert "was deleted or changed and is written again" in capsys.readouterr().out


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run with its last two checkpoints, of steps 18 and 24."""
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, pixel_task.train(workdir)


def test_curve_and_summary_survive_lost_metrics(whole, tmp_path):
    workdir = shutil.copytree(whole[0], tmp_path / "run")
    (workdir / "metrics.jsonl").unlink()
    shutil.rmtree(workdir / "checkpoints" / "24")
    assert pixel_task.train(workdir) | {"seconds": 0} == whole[1] | {"seconds": 0}
    assert read_metrics(workdir) == read_metrics(whole[0])


def test_checkpoints_without_metrics_give_the_evaluations(whole, tmp_path, capsys):
    """Those of earlier versions hold no lines."""
    workdir = shutil.copytree(whole[0], tmp_path / "run")
    for step in ("18", "24"):
        folder = workdir / "checkpoints" / step
        (folder / "checksums.json").unlink()
        progress = json.loads((folder / "progress" / "metadata").read_text())
        del progress["metrics"]
        (folder / "progress" / "metadata").write_text(json.dumps(progress))
    (workdir / "metrics.jsonl").write_bytes(b"\xff\n")
    assert pixel_task.train(workdir) | {"seconds": 0} == whole[1] | {"seconds": 0}
    assert "has no lines of steps 1 to 24" in capsys.readouterr().out
    stored = [line for line in read_metrics(whole[0]) if "eval_score" in line]
    assert read_metrics(workdir) == [line for line in stored if line["step"] in (18, 24)]


def open_checkpoints(workdir, read_only=True):
    return Checkpoints(workdir, keep_last=2, best_metric="eval_score", read_only=read_only)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[1]", b'{"eval_score": "x"}'])
def test_damaged_metrics_of_a_checkpoint(content, whole, tmp_path):
    workdir = shutil.copytree(whole[0], tmp_path / "run")
    (workdir / "checkpoints" / "24" / "metrics" / "metrics").write_bytes(content)
    state = abstract_state(pixel_task.make_run())
    with open_checkpoints(workdir) as checkpoints:
        assert int(checkpoints.restore(state)[0].step) == 18
        assert int(checkpoints.restore(state, "best")[0].step) == 18


def test_whole_checkpoint_of_another_model_is_not_put_aside(whole, tmp_path):
    workdir = shutil.copytree(whole[0], tmp_path / "run")
    other = pixel_task.make_run(ema_decay=0.9)
    message = "checkpoint 24 in .* is of another model or optimizer"
    with (
        open_checkpoints(workdir, read_only=False) as checkpoints,
        pytest.raises(InputError, match=message),
    ):
        checkpoints.restore(abstract_state(other))
    assert {path.name for path in (workdir / "checkpoints").iterdir()} == {"18", "24"}


def test_places_that_cannot_hold_checkpoints(tmp_path, monkeypatch):
    (tmp_path / "checkpoints").touch()
    with pytest.raises(InputError, match="checkpoints cannot be written: it is a file; move it"):
        open_checkpoints(tmp_path, read_only=False)

    def refuse(**_):
        raise OSError(errno.EROFS, "Read-only file system")

    (tmp_path / "checkpoints").unlink()
    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(InputError, match="checkpoints cannot be written: Read-only file system"):
        open_checkpoints(tmp_path, read_only=False)


@pytest.mark.parametrize("again", [False, True])
def test_moved_workdir_is_not_made_again(again, whole, tmp_path):
    workdir = shutil.copytree(whole[0], tmp_path / "run")
    state = initial_state(pixel_task.make_run())
    with open_checkpoints(workdir, read_only=False) as checkpoints:
        workdir.rename(tmp_path / "elsewhere")
        if again:
            workdir.mkdir()
        with pytest.raises(StorageError, match="run was deleted or moved while the run wrote"):
            checkpoints.save(state, None, {})
    assert not (workdir / "checkpoints").exists()


def test_one_device_reads_the_checkpoint_of_eight(whole):
    one = jax.make_mesh((1,), ("data",), (AxisType.Auto,), devices=jax.devices()[:1])
    run = dataclasses.replace(pixel_task.make_run(), mesh=one)
    with open_checkpoints(whole[0]) as checkpoints:
        state, _ = checkpoints.restore(abstract_state(run))
    results = make_evaluate(run)(state)
    assert len(results) == 3
    for name, value in results.items():
        np.testing.assert_allclose(value, whole[1][name], rtol=1e-5)


class BadBatches(pixel_task.PixelBatches):
    def train(self, start_step):
        for batch in super().train(start_step):
            batch["image"][3, 0, 0, 0] = np.nan
            yield batch


def bad_weights():
    run = pixel_task.make_run()
    return jax.tree.map(
        lambda x: np.full_like(x, np.nan), jax.device_get(initial_state(run)).variables
    )


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"batches": BadBatches()}, "step 1: .*; image of this batch is not finite: mend the data"),
        ({"pretrained": bad_weights}, "step 1: .*, so the learning rate is not the cause: look at"),
    ],
)
def test_divergence_says_what_is_known(fields, words, tmp_path):
    run = dataclasses.replace(pixel_task.make_run(), **fields)
    with (
        open_checkpoints(tmp_path, read_only=False) as checkpoints,
        pytest.raises(DivergenceError, match=words),
    ):
        fit(run, checkpoints, tmp_path)


class HugeBatches(pixel_task.PixelBatches):
    """From a step on, batches whose loss is infinite."""

    first = 20

    def train(self, start_step):
        for step, batch in enumerate(super().train(start_step), start_step):
            batch["brightness"] *= 1e30 if step >= self.first else 1
            yield batch


@pytest.mark.parametrize(
    ("first", "words"),
    [
        (
            20,
            r"step 21: .*; look at these records, or go back with --from_step=STEP \(there are 18",
        ),
        (18, "step 19: .*; the checkpoint of step 18 may have diverged already: start in another"),
    ],
)
def test_divergence_says_where_to_go_back_to(first, words, whole, tmp_path):
    workdir = shutil.copytree(whole[0], tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints" / "24")
    batches = HugeBatches()
    batches.first = first
    run = dataclasses.replace(pixel_task.make_run(), batches=batches)
    with (
        open_checkpoints(workdir, read_only=False) as checkpoints,
        pytest.raises(DivergenceError, match=words),
    ):
        fit(run, checkpoints, workdir)


FULL_DISK = """
import pathlib, resource, sys, threading, time
import jax
from absl import flags
from resnest_jax import cli

sys.path.append(sys.argv[1])
import pixel_task

def main(_):
    jax.config.update("jax_enable_compilation_cache", False)
    threading.Thread(target=time.sleep, args=(1000,)).start()  # a library's, which does not end
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
    pixel_task.train(pathlib.Path("run"))

cli.run(main, flags.FlagValues(), arguments=True)
"""


def test_full_disk_is_one_line_and_the_end(tmp_path):
    (tmp_path / "full_disk.py").write_text(FULL_DISK)
    result = run_command("full_disk", helpers.ROOT / "tests", cwd=tmp_path)
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: a checkpoint cannot be written to ")
    assert "File too large" in line
    assert result.returncode == 1
