"""requirements.txt agrees with pyproject.toml."""

import tomllib

import helpers


def test_requirements_are_those_of_the_package_and_its_training():
    project = tomllib.loads((helpers.ROOT / "pyproject.toml").read_text())["project"]
    expected = [*project["dependencies"], *project["optional-dependencies"]["train"]]
    lines = (helpers.ROOT / "requirements.txt").read_text().splitlines()
    assert sorted(line for line in lines if line[0] != "#") == sorted(expected)
