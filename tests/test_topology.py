"""Compiling for slices of TPUs that are not there, and reading the compiled program."""

import importlib.util
import json
import re

import helpers
import jax
import numpy as np
import pytest
from jax.sharding import Mesh
from test_commands import QUICK, run

from resnest_jax import recipe, topology
from resnest_jax.dry_run import MIB
from resnest_jax.errors import InputError
from resnest_jax.training.collectives import Collective, collectives

# From a program for v5e:2x2, shortened; the asynchronous ones and the loop as XLA writes them.
PROGRAM = """\
HloModule jit_train_step, is_scheduled=true

%add.1 (x.1: f32[], y.1: f32[]) -> f32[] {
  %x.1 = f32[]{:T(128)} parameter(0)
}

%part.2 (arg.2: (f32[8,128])) -> (f32[8,128]) {
  %all-reduce.7 = f32[8,128]{1,0:T(8,128)S(1)} all-reduce(%x.2), channel_id=3, to_apply=%add.1
  ROOT %call.3 = (f32[8,128]{1,0:T(8,128)}) call(%all-reduce.7), to_apply=%inner.4
}

%inner.4 (arg.4: f32[8,128]) -> (f32[8,128]) {
  %rs.1 = u8[3]{0:T(512)(128)(4,1)} reduce-scatter(%arg.4), channel_id=5, to_apply=%add.1
}

ENTRY %main.9_spmd (param.1: f32[64], param.2: bf16[64]) -> (f32[64]) {
  %all-reduce.130 = (f32[1000]{0:T(1024)S(1)}, bf16[3,3,32,2,64]{4,2,3,1,0:T(8,128)(2,1)S(1)}, \
/*index=2*/pred[]{:T(512)}) all-reduce(%a, %b, %c), channel_id=1, to_apply=%add.1
  %get-tuple-element.984 = f32[1000]{0:T(1024)} get-tuple-element(%all-reduce.130), index=0
  %ag-start = (f32[2,8]{1,0:T(8,128)}, f32[8,8]{1,0:T(8,128)}) all-gather-start(%param.1)
  %ag-done = f32[8,8]{1,0:T(8,128)} all-gather-done(%ag-start)
  %cp-start = (u8[4]{0}, u8[4]{0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%param.2)
  %cp-done = u8[4]{0:T(512)} collective-permute-done(%cp-start)
  %while.3 = (f32[8,128]{1,0:T(8,128)}) while(%t), condition=%less.1, body=%part.2
}
"""


def test_collectives_of_a_tpu_program():
    assert set(collectives(PROGRAM)) == {
        Collective("all-reduce", 4 * 1000 + 2 * 9 * 32 * 2 * 64 + 1),
        Collective("all-gather", 4 * 64),
        Collective("collective-permute", 4),
        Collective("all-reduce", 4 * 1024, looped=True),
        Collective("reduce-scatter", 3, looped=True),
    }


def test_cycles_are_summed():
    line = '%f = f32[8] fusion(%x), backend_config={"window_config":{"estimated_cycles":"{}"}}'
    program = "\n".join(line.replace("{}", cycles) for cycles in ("17", "25"))
    assert topology.estimated_cycles(program) == 42


def test_a_chip_sends_what_the_best_algorithms_need():
    sent = [Collective("all-reduce", 400), Collective("all-gather", 400)]
    assert topology.exchange_bytes(sent, chips=4) == 600 + 300
    looped = [Collective("reduce-scatter", 100, looped=True), Collective("collective-permute", 7)]
    assert topology.exchange_bytes(looped, chips=4, parts=2) == 2 * 300 + 7


@pytest.mark.parametrize(
    "name",
    ["v9:2x2", "v5e", "v5e:", "v5e:4", "v5e:2y2", "v5e:0x4", "v5e:32x16", "v5e:²x2"],
)
def test_unknown_slices_are_one_line(name):
    with pytest.raises(InputError, match=f"--topology .*v5e, v5p, v6e.*got '{re.escape(name)}'$"):
        topology.describe_slice(name)


def test_missing_libtpu_is_one_line(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"v5e:4x4 needs libtpu.*resnest_jax\[tpu\]"):
        topology.describe_slice("v5e:4x4")


def test_run_is_built_for_the_devices_of_a_mesh():
    mesh = Mesh(np.array(jax.devices()[:3]), ("data",))
    config = helpers.tiny_config(parallel__batch_norm="device")
    built = recipe.build(config, mesh=mesh)
    assert built.mesh is mesh
    assert built.options.norm_groups == built.task.model.norm_groups == 3
    assert built.task.model.platform == "cpu"
    config.batch_size = 16
    with pytest.raises(InputError, match="batch_size 16 must be a positive multiple of the 3 dev"):
        recipe.build(config, mesh=mesh)


class Memory:
    """Estimates of a step that needs so many GiB, and so many an image."""

    def __init__(self, fixed, image):
        self.fixed, self.image, self.calls = fixed, image, 0

    def __call__(self, run, described, batch_size):
        self.calls += 1
        images = batch_size // described.mesh.size
        needed = self.fixed + self.image * images
        return {
            "images_per_chip": images,
            "fits": needed <= 15.75,
            "needed_gib": needed,
            "available_gib": 15.75,
            "reason": "Ran out of memory",
        }


@pytest.mark.parametrize(
    ("fixed", "image", "first", "largest"),
    [
        (1.0, 0.05, 128, 288),  # 14.75 / 0.05 = 295, in eights
        (1.0, 0.05, 512, 288),
        (1.0, 2.0, 4, 7),
        (20.0, 0.1, 16, 0),
        (0.0, 0.0, 16, 1024),  # eight times as many at a time
    ],
)
def test_largest_batch_that_fits(fixed, image, first, largest, monkeypatch):
    memory = Memory(fixed, image)
    monkeypatch.setattr(topology, "estimate", memory)
    mesh = Mesh(np.array(jax.devices()[:4]), ("data",))
    described = topology.Slice("v5e:2x2", topology.CHIPS["v5e"], mesh)
    built = recipe.build(helpers.tiny_config(), mesh=mesh)
    found = topology.largest_batch(built, described, memory(built, described, 4 * first))
    assert memory.calls <= topology.MOST_COMPILES
    assert found["largest_batch_per_chip"] == largest
    assert found["largest_batch"] == 4 * largest
    assert largest in [*found["compiled_per_chip"], 0]


# Both are libtpu's.
@pytest.mark.parametrize(
    "message",
    [
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (20.06G) exceeds available HBM (15.75G).\nMore",
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space "
        "hbm. Used 20.06G of 15.75G hbm. Exceeded hbm capacity by 4.31G.\n\nTotal hbm usage >= 20G",
    ],
)
def test_step_that_does_not_fit_is_one_line(message, monkeypatch, tmp_path):
    def fail(run, batch_size):
        raise jax.errors.JaxRuntimeError(message)

    mesh = Mesh(np.array(jax.devices()[:4]), ("data",))
    described = topology.Slice("v5e:2x2", topology.CHIPS["v5e"], mesh)
    monkeypatch.setattr(topology, "lower_for", fail)
    monkeypatch.setattr(topology, "describe_slice", lambda name: described)
    with pytest.raises(InputError, match=r"batch_size 240 does not fit v5e:2x2: .*20\.06G") as e:
        topology.dry_run(helpers.tiny_config(), tmp_path, "v5e:2x2")
    assert "\n" not in str(e.value)
    report = json.loads((tmp_path / "dry_run" / "report.json").read_text())
    assert report["fits"] is False
    assert report["needed_gib"] == 20.06
    assert report["available_gib"] == 15.75
    assert report["largest_batch"] == 0


def test_report_of_a_slice(monkeypatch, tmp_path, capsys):
    """Of CPU devices: gradients all-reduced once, the longer time, nothing but the report left."""
    mesh = Mesh(np.array(jax.devices()[:4]), ("data",))
    described = topology.Slice("v5e:2x2", topology.CHIPS["v5e"], mesh)
    monkeypatch.setattr(topology, "describe_slice", lambda name: described)
    monkeypatch.setattr(topology, "MOST_COMPILES", 1)
    config = helpers.tiny_config(parallel__batch_norm="device", batch_size=48)
    found = topology.dry_run(config, tmp_path, "v5e:2x2")
    assert "estimates, not a run" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"dry_run"}
    assert json.loads((tmp_path / "dry_run" / "report.json").read_text()) == found
    assert found["fits"]
    assert (found["chips"], found["images_per_chip"], found["largest_batch"]) == (4, 12, 48)
    assert 0 < found["needed_gib"] < found["available_gib"] == 15.75
    assert found["roofline_ms"] == max(found["compute_ms"], found["memory_ms"])
    params = jax.tree.leaves(recipe.build(config, mesh=mesh).abstract_variables["params"])
    size = 4 * sum(leaf.size for leaf in params) / MIB
    assert found["exchanged"]["all-reduce"]["mib"] == pytest.approx(size, rel=0.2)


@pytest.mark.slow
def test_dry_run_for_a_slice(tmp_path):
    pytest.importorskip("libtpu")
    words = (*QUICK, f"--workdir={tmp_path}/run", "--dry_run", "--topology=v5e:2x2")
    result = run("train", *words)
    assert result.returncode == 0, result.stderr
    assert not result.stderr
    assert "estimates, not a run" in result.stdout
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"dry_run"}
    report = json.loads((tmp_path / "run" / "dry_run" / "report.json").read_text())
    assert report["fits"]
    assert report["chips"] == 4
    assert report["exchanged"]["all-reduce"]["mib"] > 0
    assert report["largest_batch"] >= report["batch_size"]
    unknown = run("train", *words[:-1], "--topology=v5e:3x3")
    assert unknown.returncode == 1
    assert unknown.stderr.count("\n") == 1
    assert "v5e:3x3" in unknown.stderr
