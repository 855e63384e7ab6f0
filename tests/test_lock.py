"""One writer per directory: two processes, a killed one, another host."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from resnest_jax import lock
from resnest_jax.errors import InputError

HOLD = """
import pathlib, sys, time
from resnest_jax.lock import one_writer
with one_writer(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_second_writer_is_refused_and_a_killed_one_is_replaced(holder, tmp_path):
    words = f"in use by process {holder.pid} on host {os.uname().nodename}"
    with pytest.raises(InputError, match=words), lock.one_writer(tmp_path):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with lock.one_writer(tmp_path):
        assert json.loads((tmp_path / lock.WRITER).read_text())["process"] == os.getpid()
    assert not (tmp_path / lock.WRITER).exists()


@pytest.mark.parametrize(("age", "free"), [(5, False), (300, True)])
def test_another_host_holds_it_as_long_as_its_heart_beats(age, free, tmp_path):
    writer = tmp_path / lock.WRITER
    writer.write_text(json.dumps({"host": "elsewhere", "process": 7}))
    then = time.time() - age
    os.utime(writer, (then, then))
    if free:
        with lock.one_writer(tmp_path):
            pass
    else:
        words = "in use by process 7 on host elsewhere"
        with pytest.raises(InputError, match=words), lock.one_writer(tmp_path):
            pass
    assert {path.name for path in tmp_path.iterdir()} <= {lock.LOCK, lock.WRITER}


def test_heart_beats(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "HEARTBEAT", 0.01)
    writer = tmp_path / lock.WRITER
    with lock.one_writer(tmp_path):
        os.utime(writer, (0, 0))
        deadline = time.monotonic() + 10
        while writer.stat().st_mtime < 1:
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.mark.parametrize("content", ["", "{", "[]", "7"])
def test_damaged_owner_does_not_matter(content, tmp_path):
    (tmp_path / lock.WRITER).write_text(content)
    os.utime(tmp_path / lock.WRITER, (0, 0))
    with lock.one_writer(tmp_path):
        pass
