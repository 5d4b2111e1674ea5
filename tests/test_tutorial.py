"""The tutorial runs as it stands: its files become a wheel, its tests pass, its method is listed and trains."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.test_main import SMALL

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "add-a-method.md").read_text()
FILES = dict(re.findall(r'```\w+ title="([\w.]+)"\n(.*?)```', PAGE, re.DOTALL))


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder in which the tutorial's wheel is installed under `site`, and its files lie."""
    folder = tmp_path_factory.mktemp("tutorial")
    for name, text in FILES.items():
        (folder / name).write_text(text)
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    built = subprocess.run([*pip, "--target", "site", "."], cwd=folder, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return folder


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Another interpreter, so that the entry points of this one stay as they are."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder / "site"), str(ROOT)])}
    return subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True)


def test_its_files_are_those_that_it_names() -> None:
    assert set(FILES) == {"fedmine.py", "pyproject.toml", "test_fedmine.py"}


def test_its_tests_pass(installed) -> None:
    run = python(installed, "-m", "pytest", "-q", "test_fedmine.py", "-p", "no:cacheprovider")
    assert run.returncode == 0, run.stdout
    assert " passed" in run.stdout


COMMANDS = """
import contextlib, io, json, sys
from pfedst.cli import main

found = []
for arguments in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = main(arguments)
    found.append([code, out.getvalue(), err.getvalue()])
print(json.dumps(found))
"""
"""One interpreter for all: its imports take seconds."""


def test_its_method_is_listed_explained_and_trained_without_touching_pfedst(installed) -> None:
    fit = ["fit", *SMALL, "--method=FedMine"]
    trained = [*fit, "--method.mu=0.1", "--method.weighting=uniform", "--name=mine"]
    commands = [["methods"], ["methods", "FedMine"], trained, [*fit, "--method.mu=-1"]]
    run = python(installed, "-c", COMMANDS, json.dumps(commands))
    assert run.returncode == 0, run.stderr
    listed, explained, fitted, refused = json.loads(run.stdout)
    assert "FedMine" in listed[1]
    for words in ("the tutorial of pfedst", "where a site's own look enters", "mu", "norm_statistics"):
        assert words in explained[1]
    assert fitted[0] == 0, fitted[2]
    assert (installed / "runs" / "mine" / "summary.json").is_file()
    assert refused[0] == 2
    assert "--method.mu -1.0 of FedMine: must be 0 or more" in refused[2]
