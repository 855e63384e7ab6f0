"""The order of imports: commands at the top, exceptions at the bottom."""

import ast
import functools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import helpers
import pytest

PACKAGE = "resnest_jax"
COMMANDS = {"train", "evaluate", "predict", "convert", "export", "prepare", "preview", "to_coco"}
# From the bottom to the top; a unit imports only lower layers.
LAYERS = [
    {"errors", "compiling"},
    {"files"},
    {"lock"},
    {"data", "training", "models"},
    {"workdir", "config", "weights"},
    {"tasks"},
    {"recipe"},
    {"dry_run", "runs", "cli", "arguments"},
    {"topology"},
    COMMANDS,
]
# Imports within a layer, acyclic.
WITHIN = {("workdir", "config"), ("weights", "config"), ("weights", "workdir"), ("dry_run", "runs")}
RANK = {unit: rank for rank, layer in enumerate(LAYERS) for unit in layer}
MAX_LINES = 350

FILES = sorted((helpers.ROOT / PACKAGE).rglob("*.py"))
OUTSIDE = sorted(
    path
    for name in ("experiments", "examples", "configs")
    for path in (helpers.ROOT / name).rglob("*.py")
)
EXPERIMENTS = [
    "experiments.ablation.__main__",
    "experiments.attention",
    "experiments.benchmark.__main__",
    "experiments.growth",
    "experiments.input_benchmark",
    "experiments.scaling.__main__",
]


def module_name(path: Path) -> str:
    """Return the dotted name of a file of the repository."""
    parts = path.relative_to(helpers.ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def modules() -> frozenset[str]:
    return frozenset(module_name(path) for path in FILES)


def imported(path: Path) -> Iterator[str]:
    """Yield the modules that a file imports, in functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                yield submodule if submodule in modules() else node.module or ""


def unit_of(module: str) -> str | None:
    """Return the part of the package that a module belongs to; None outside or at its root."""
    package, _, rest = module.partition(".")
    return rest.split(".")[0] or None if package == PACKAGE else None


def unit_imports() -> Iterator[tuple[Path, str, str]]:
    """Yield file, its unit and an imported unit, for imports between units."""
    for path in FILES:
        unit = unit_of(module_name(path))
        for other in map(unit_of, imported(path)):
            if unit and other and other != unit:
                yield path, unit, other


def test_every_file_has_a_layer():
    units = {unit_of(module_name(path)) for path in FILES} - {None}
    assert units == set(RANK)


def test_imports_run_down():
    wrong = {
        f"{path.relative_to(helpers.ROOT)} imports {other}"
        for path, unit, other in unit_imports()
        if RANK[unit] <= RANK[other] and (unit, other) not in WITHIN
    }
    assert not wrong


def test_commands_are_not_imported():
    commands = {f"{PACKAGE}.{name}" for name in COMMANDS} | set(EXPERIMENTS)
    for path in [*FILES, *OUTSIDE]:
        assert not commands & set(imported(path)), path


def test_package_does_not_import_its_users():
    for path in FILES:
        roots = {name.split(".")[0] for name in imported(path)}
        assert not roots & {"experiments", "examples", "configs", "tests"}, path


def test_models_need_only_jax_flax_numpy():
    allowed = {"jax", "flax", "numpy", PACKAGE, *sys.stdlib_module_names}
    for path in (helpers.ROOT / PACKAGE / "models").rglob("*.py"):
        names = set(imported(path))
        assert {name.split(".")[0] for name in names} <= allowed, path
        assert {unit_of(name) for name in names} <= {None, "models", "errors"}, path


def test_training_names_no_task_network_or_data_set():
    root = helpers.ROOT / PACKAGE
    tasks = {path.name for path in (root / "tasks").iterdir() if path.is_dir()} - {"__pycache__"}
    networks = {"resnest", "resnet", "skresnet", "deeplab", "fcn", "rcnn"}
    data_sets = {"imagenet", "digits", "coco", "ade20k", "cityscapes", "cifar"}
    names = re.compile(rf"\b({'|'.join(tasks | networks | data_sets)})\w*", re.IGNORECASE)
    for path in (root / "training").rglob("*.py"):
        found = {match[0] for match in names.finditer(path.read_text())} - {PACKAGE}
        assert not found, path


def test_files_are_short():
    long = {
        path.name: count
        for path in FILES
        if (count := len(path.read_text().splitlines())) > MAX_LINES
    }
    assert not long


def run_python(code: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=helpers.ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_package_needs_only_jax_flax_numpy():
    """Importing it loads no other third-party package."""
    code = f"""
import sys
import flax.linen, flax.traverse_util, jax, jax.numpy, numpy
before = set(sys.modules)
import {PACKAGE}
roots = {{name.split(".")[0] for name in set(sys.modules) - before}}
print(*sorted(roots - sys.stdlib_module_names))
"""
    assert run_python(code).split() == [PACKAGE]


@pytest.mark.parametrize("step", [1, -1])
def test_all_commands_can_be_imported_in_one_process(step):
    """Each has its own flags, in either order; importing adds none to absl's."""
    names = [f"{PACKAGE}.{name}" for name in sorted(COMMANDS)] + EXPERIMENTS
    code = f"""
import importlib
from absl import flags
modules = [importlib.import_module(name) for name in {names[::step]}]
assert len({{id(module.FLAGS) for module in modules}}) == len(modules)
print(*[name for name in ("config", "workdir", "model", "output") if name in flags.FLAGS])
"""
    assert run_python(code).strip() == ""
