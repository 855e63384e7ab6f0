"""Bad input of every command: one line that names it, exit code 1, and nothing is left behind."""

import os
import shlex

import commands
import cv2
import numpy as np
import pytest
from bad_input import CASES, DETECT, DIGITS, OLD, RECIPES, VARIABLES


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the files that the cases name."""
    folder = tmp_path_factory.mktemp("bad input")
    for name, (text, _) in RECIPES.items():
        (folder / name.partition(":")[0]).write_text(text)
    (folder / "file").write_text("text")
    (folder / "folder").mkdir()
    (folder / "folder" / "file").write_text("text")
    (folder / "nothing").mkdir()
    cv2.imwrite(str(folder / "image.png"), np.zeros((32, 32, 3), np.uint8))
    return folder


def listing(folder):
    return sorted((root, *folders, *files) for root, folders, files in os.walk(folder))


def check(folder, words, command, arguments, **variables):
    before = listing(folder)
    module = command if "." in command else f"resnest_jax.{command}"
    text = arguments.format(digits=DIGITS, detect=DETECT, old=OLD)
    result = commands.run(module, *shlex.split(text), cwd=folder, **variables)
    assert result.returncode == 1, result.stdout
    assert result.stderr.startswith("error: "), result.stderr
    assert result.stderr.count("\n") == 1, result.stderr
    for word in words.split():
        assert word in result.stderr
    assert listing(folder) == before


@pytest.mark.parametrize(
    ("command", "arguments", "words"),
    [(command, *case) for command, cases in CASES.items() for case in cases],
)
def test_bad_input_is_one_line(command, arguments, words, folder):
    check(folder, words, command, arguments)


@pytest.mark.parametrize(("variables", "words"), VARIABLES)
def test_bad_variables_are_one_line(variables, words, folder):
    check(folder, words, "train", "{digits} --workdir=run --config.train_split=half", **variables)
