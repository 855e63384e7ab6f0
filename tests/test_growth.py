"""Growth of costs: its points, slopes and files; times are not tested."""

import csv

import jax
import pytest

from experiments import growth
from experiments.scaling import devices
from resnest_jax import create_model, recipe


def small(**fields):
    model = create_model("resnest14", num_classes=4, planes=(8, 8, 8, 8), stem_width=4, **fields)
    return growth.Point(model, 32, 2)


def test_slope_is_the_exponent():
    rows = [{"value": x, "ms": 3 * x**1.5, "exchanged_mb": 0} for x in (1, 2, 8)]
    assert growth.slope(rows, "ms") == pytest.approx(1.5)
    assert growth.slope(rows, "exchanged_mb") is None
    assert growth.slope(rows[:1], "ms") is None
    rows[0]["ms"] = 0  # as the bytes that one device exchanges
    assert growth.slope(rows, "ms") == pytest.approx(1.5)


def test_points_differ_in_one_thing():
    base = small()
    assert base.at("depth", 50) == base._replace(model=small(stage_sizes=(3, 4, 6, 3)).model)
    assert base.at("radix", 4) == base._replace(model=small(radix=4).model)
    assert base.at("cardinality", 2) == base._replace(model=small(cardinality=2).model)
    assert base.at("image_size", 64) == base._replace(image_size=64)
    assert base.at("batch_size", 8) == base._replace(batch_size=8)


def test_training_has_devices_and_no_batch_of_one():
    inference, training = growth.ranges_of(False), growth.ranges_of(True)
    assert set(training) - set(inference) == {"devices"}
    assert (inference["batch_size"][0], training["batch_size"][0]) == (1, 2)


def test_rows_and_files(tmp_path, capsys, monkeypatch):
    base = small()
    axis = "batch_size"
    points = {x: base.at(axis, x) for x in (1, 2)}
    table = {axis: growth.measure(axis, points, False, 2)}
    first, second = table[axis]
    assert all(row["milliseconds"] > 0 for row in table[axis])
    assert second["temporary_mib"] > first["temporary_mib"]
    assert second["gmacs"] == 2 * first["gmacs"]
    (training,) = growth.measure(axis, {2: base}, True, 2)
    assert training["temporary_mib"] > second["temporary_mib"]
    found = {"temporary_mib": 5.0, "exchanged_mb": 0.0, "gib": 1.0}

    def measured(config, count, images):
        config.batch_size = jax.device_count() * images
        recipe.build(config)  # raises if the config is not valid
        return {"devices": count, **found}

    monkeypatch.setattr(devices, "measure", measured)
    table["devices"] = growth.measure_devices(base, "resnest14", (1, 2))
    growth.show(table)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "| devices | 1, 2 |  | 0.00 |  |  |"
    growth.write(table, tmp_path / "growth")
    rows = list(csv.DictReader((tmp_path / "growth.csv").read_text().splitlines()))
    assert [(row["axis"], row["value"]) for row in rows] == [
        ("batch_size", "1"),
        ("batch_size", "2"),
        ("devices", "1"),
        ("devices", "2"),
    ]
    assert float(rows[0]["temporary_mib"]) == first["temporary_mib"]
    assert rows[2]["milliseconds"] == ""
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")
