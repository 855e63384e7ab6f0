"""Keys and defaults, completion of partial and old configs, overrides, the config of a run."""

import dataclasses
import json

import golden
import helpers
import jax.numpy as jnp
import pytest
from absl import flags
from ml_collections import ConfigDict, config_flags

import resnest_jax
from resnest_jax import config as config_lib
from resnest_jax.config import complete, default_config, differences, flatten, model_fields
from resnest_jax.errors import InputError
from resnest_jax.models.zoo import MODELS
from resnest_jax.workdir import check_workdir, claim_workdir, load_config

RECIPES = json.loads((golden.FOLDER / "configs.json").read_text())
OLD = {
    name: json.loads((golden.FOLDER / name / "config.json").read_text())
    for name in ("run_v0", "run_v0_head")
}


@pytest.mark.parametrize("task", config_lib.TASKS)
def test_defaults_are_locked_and_not_shared(task):
    config = default_config(task)
    assert config.task == task
    assert config.is_locked
    assert config.model.is_locked
    config.seed, config.model.name, config.optimizer.momentum = 1, "resnest14", 0.0
    assert differences(default_config(task)) == {}


def test_unknown_tasks_are_named():
    with pytest.raises(InputError, match=r"must be one of classification.*; got 'pose'"):
        default_config("pose")
    with pytest.raises(InputError, match=r"config.task .* got \['x'\]"):
        complete({"task": ["x"]})


def test_the_model_section_has_the_fields_of_the_module():
    names = {field.name for field in dataclasses.fields(resnest_jax.ResNeSt)}
    names -= {"parent", "name", "norm_groups"}  # Flax's own; parallel.batch_norm sets the last
    renamed = {config_lib.RENAMED.get(f"model.{name}", f"model.{name}") for name in names}
    expected = renamed | {"model.name", "model.platform", "model.frozen_stages"}
    assert {f"model.{key}" for key in default_config("classification").model} == expected


def test_the_model_section_has_the_defaults_of_the_module():
    """A default is None if it depends on the model, else it is that of the module."""
    section = default_config("classification").model
    presets = {key for model in MODELS.values() for key in model.fields}
    assert all(section[key] is None for key in presets)
    of_module = {field.name: field.default for field in dataclasses.fields(resnest_jax.ResNeSt)}
    of_module["dtype"] = jnp.dtype(of_module["dtype"]).name
    stated = model_fields(default_config("classification"))
    assert stated.pop("name") in MODELS
    assert stated == {key: of_module[key] for key in stated}
    assert resnest_jax.create_model("resnest200", **stated).dropout == 0.2


def test_the_model_section_of_segmentation_has_the_fields_of_both_modules():
    section = default_config("segmentation").model
    modules = (resnest_jax.models.deeplab.SegmentationModel, resnest_jax.ResNeSt)
    names = {field.name for module in modules for field in dataclasses.fields(module)}
    assert set(section) == names - {"parent", "head", "norm_groups"} | {"frozen_stages"}
    model = resnest_jax.create_model(**model_fields(default_config("segmentation")))
    assert (model.head, model.backbone.output_stride) == ("deeplabv3", 8)
    assert (model.dropout, model.aspp_dropout, model.auxiliary) == (0.1, 0.5, False)


def test_the_model_section_of_detection_has_the_fields_of_both_modules():
    section = default_config("detection").model
    detector, backbone = (
        {field.name: field.default for field in dataclasses.fields(module)}
        for module in (resnest_jax.models.detection.rcnn.RCNN, resnest_jax.ResNeSt)
    )
    assert set(section) == {*detector, *backbone} - {"parent", "norm_groups"}
    model = resnest_jax.create_model(**model_fields(default_config("detection")))
    for name in set(section) & set(detector) - {"name", "backbone"}:
        assert getattr(model, name) == detector[name], name
    assert (model.backbone.frozen_stages, model.backbone.output_stride) == (1, 32)


@pytest.mark.parametrize("values", [*RECIPES.values(), *OLD.values()], ids=[*RECIPES, *OLD])
def test_old_configs_are_completed(values):
    """All current keys, with the old values; keys that the old config lacks are off."""
    config = complete(values)
    assert config.keys() == default_config(values.get("task", "classification")).keys()
    assert config.is_locked
    old = flatten(values)
    now = json.loads(json.dumps(flatten(config)))
    assert {key: now[key] for key in old} == old
    assert differences(config).keys() <= old.keys()
    assert complete(config) == complete(config.to_dict()) == config


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_complete_to_what_old_runs_have(name):
    recipe = helpers.load_config(*name.split(":"))
    assert flatten(complete(recipe)) == flatten(complete(RECIPES[name]))


def test_partial_configs_are_completed():
    values = {"optimizer": {"momentum": 0.5, "lr_mults": [["^head/", 10]]}, "epochs": 3}
    config = complete(ConfigDict(values))
    assert config.optimizer.lr_mults == (("^head/", 10),)
    assert config.epochs == 3.0
    assert isinstance(config.epochs, float)
    assert config.optimizer.name == "sgd"
    assert config == complete({"optimizer.momentum": 0.5, **flatten(values)})
    assert differences(config).keys() == {"optimizer.momentum", "optimizer.lr_mults", "epochs"}
    with pytest.raises(TypeError):
        config.model.radix = "two"  # its value is None, but its type is fixed
    with pytest.raises(KeyError):
        config.update({"optimiser": {}})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"optimiser": 1}, "config has no key 'optimiser'; its keys are augment, batch_size"),
        ({"augment": {"mixupp": 1}}, "config.augment has no key 'mixupp'; its keys are crop"),
        ({"model": {"norm_groups": 2}}, "config.model has no key 'norm_groups'"),
        ({"seed": {"x": 1}}, "config.seed is a value and has no keys; got config.seed.x"),
        ({"mix": 0.2}, "config.mix must be a section with keys of cutmix, .*; got 0.2"),
        ({"batch_size": "many"}, "config.batch_size must be an integer; got 'many'"),
        ({"batch_size": 64.0}, "config.batch_size must be an integer; got 64.0"),
        ({"seed": True}, "config.seed must be an integer; got True"),
        ({"seed": None}, "config.seed must be an integer; got None"),
        ({"epochs": "3"}, "config.epochs must be a number; got '3'"),
        ({"augment": {"flip": 1}}, "config.augment.flip must be True or False; got 1"),
        ({"dataset": 5}, "config.dataset must be a string; got 5"),
        ({"model": {"planes": 5}}, "config.model.planes must be a tuple; got 5"),
        ({"model": {"radix": 2.5}}, "must be an integer, or None for the model's own; got 2.5"),
        ({"image_size": "big"}, "config.image_size must be an integer or a tuple of pairs"),
    ],
)
def test_wrong_keys_and_values_are_named(values, message):
    with pytest.raises(InputError, match=message):
        complete(values)


def test_renamed_keys():
    config = complete({"model": {"name": "resnest14", "expression": "grouped"}})
    assert config.model.implementation == "grouped"
    assert "grouped" in vars(resnest_jax.create_model(**model_fields(config))).values()
    both = {"model": {"expression": "grouped", "implementation": "auto"}}
    with pytest.raises(InputError, match=r"config.model.expression is now config.model.implem"):
        complete(both)
    defaults = flatten(default_config("classification"))
    assert all(old not in defaults for old in config_lib.RENAMED)
    assert all(new in defaults for new in config_lib.RENAMED.values())


def parse(*overrides, recipe="digits.py"):
    """Return the config that ``resnest_jax.train`` gets from a command line."""
    values = flags.FlagValues()
    argv = ["train", f"--config={helpers.ROOT}/configs/{recipe}", *overrides]
    config_flags.DEFINE_config_file(
        "config", None, "The recipe.", flag_values=values, lock_config=True, sys_argv=argv
    )
    values(argv)
    return values["config"].value


OTHER = {bool: True, int: 7, float: 0.25, str: "else", tuple: (1, ("^a.b/", 2.0)), object: 96}


def keys(task):
    return flatten(default_config(task))


def kind(config, key):
    *sections, last = key.split(".")
    for section in sections:
        config = config[section]
    return config.get_type(last)


EVERY = [(task, key) for task in config_lib.TASKS for key in keys(task) if key != "task"]


@pytest.mark.parametrize(("task", "key"), EVERY)
def test_every_key_can_be_overridden(task, key):
    default = keys(task)[key]
    value = OTHER[kind(default_config(task), key)]
    value = not default if isinstance(default, bool) else value
    recipes = {
        "classification": "digits.py",
        "segmentation": "segment.py",
        "detection": "detect.py",
    }
    recipe = recipes[task]
    assert flatten(complete(parse(f"--config.{key}={value}", recipe=recipe)))[key] == value


@pytest.mark.parametrize("recipe", ["digits.py", "imagenet_short.py:30"])
@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("image_size=160", 160),
        ("image_size=((0,128),(5,160))", ((0, 128), (5, 160))),
        ("model.norm=frozen", "frozen"),
        ("model.dropout=0.1", 0.1),
        ("model.output_stride=8", 8),
        ("model.radix=4", 4),
        ("model.avd_first=False", False),
        ("model.planes=(8,8,8,8)", (8, 8, 8, 8)),
        ("model.stage_sizes=(1,1,1,1)", (1, 1, 1, 1)),
        ("optimizer.lr_mults=(('^head/',10.0),)", (("^head/", 10.0),)),
        ("optimizer.decay=(?<!bn)/(kernel|bias)$", "(?<!bn)/(kernel|bias)$"),
        ("steps=100", 100),
    ],
)
def test_overrides(override, value, recipe):
    before, after = (
        flatten(complete(parse(*o, recipe=recipe))) for o in ((), [f"--config.{override}"])
    )
    key = override.split("=")[0]
    assert after.pop(key) == value
    assert before.pop(key) != value
    assert after == before


def test_a_stored_config_is_complete_and_may_differ_in_free_sections(tmp_path):
    old = OLD["run_v0"]
    with claim_workdir(tmp_path, ConfigDict(old)):
        pass
    stored = json.loads((tmp_path / "config.json").read_text())
    assert flatten(stored).keys() == keys("classification").keys()
    assert load_config(tmp_path) == complete(old)
    workdir = golden.FOLDER / "run_v0"  # it has checkpoints
    check_workdir(workdir, complete(old))
    check_workdir(
        workdir, complete(flatten(old) | {"loader.workers": 3, "checkpoint.keep_last": 9})
    )
    other = flatten(old) | {"optimizer.momentum": 0.5, "model.radix": 4}
    message = "model.radix: stored None, given 4; optimizer.momentum: stored 0.9, given 0.5; use an"
    with pytest.raises(InputError, match=message):
        check_workdir(workdir, complete(other))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "holds no run: there is no .*config.json"),
        ("{", "config.json is not JSON .*; restore .*config.json or use another workdir"),
        ("[1]", r"config.json must hold the keys of a config; got \[1\]; restore"),
        ('{"sede": 1}', "config.json: config has no key 'sede'; its keys are .*; restore"),
        ('{"seed": "x"}', "config.json: config.seed must be an integer; got 'x'; restore"),
    ],
)
def test_broken_stored_configs_are_one_line(text, message, tmp_path):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match=message) as error:
        load_config(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text", [None, "", "{", "[1]", "{}", '{"sede": 1}', '{"seed": "x"}', "\xff", "[" * 100_000]
)
def test_lost_config_comes_from_the_checkpoints(text, tmp_path, capsys):
    config = default_config("classification")
    config.seed = 7
    if text is not None:
        (tmp_path / "config.json").write_text(text, encoding="latin-1")
    for step, content in (("3", {"config": config.to_dict()}), ("6", {})):
        folder = tmp_path / "checkpoints" / step / "progress"
        folder.mkdir(parents=True)
        (folder / "metadata").write_text(json.dumps(content))
    assert load_config(tmp_path) == config
    assert "config.json" in capsys.readouterr().err
    check_workdir(tmp_path, config)
    config.seed = 8
    with pytest.raises(InputError, match="seed: stored 7, given 8"):
        check_workdir(tmp_path, config)
    (tmp_path / "checkpoints" / "3" / "progress" / "metadata").write_text("{")
    with pytest.raises(InputError, match="start train with the --config of the run, which writes"):
        load_config(tmp_path)
    check_workdir(tmp_path, config)  # which that start does


@pytest.mark.parametrize("name", OLD)
def test_weights_of_old_runs_are_described(name, tmp_path):
    from resnest_jax.weights.formats import describe_directory

    description, is_run = describe_directory(golden.FOLDER / name)
    assert is_run
    assert description["planes"] == (8, 8, 8, 8)
    assert None not in description.values()
    (tmp_path / "model.json").write_text(json.dumps(OLD[name]["model"] | {"expression": "split"}))
    again, is_run = describe_directory(tmp_path)
    assert not is_run
    assert {k for k in again if again[k] != description[k]} <= {
        "expression",
        "implementation",
    }
    (tmp_path / "model.json").write_text('{"name": "resnest14", "radixx": 1}')
    with pytest.raises(InputError, match=r"model\.json .* config.model has no key 'radixx'"):
        describe_directory(tmp_path)
