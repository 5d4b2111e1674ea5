"""The tutorial runs as it stands: its files become a wheel, its tests pass, its method is listed and trains."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import programs
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


def test_its_files_are_those_that_it_names() -> None:
    assert set(FILES) == {"fedmine.py", "pyproject.toml", "test_fedmine.py"}


def test_its_tests_pass(installed, tmp_path) -> None:
    output = tmp_path / "output"
    assert programs.finished(programs.tests_in, output, installed, "-q", "test_fedmine.py") == 0, output.read_text()
    assert " passed" in output.read_text()


def test_its_method_is_listed_explained_and_trained_without_touching_pfedst(installed, tmp_path) -> None:
    fit = ["fit", *SMALL, "--method=FedMine"]
    trained = [*fit, "--method.mu=0.1", "--method.weighting=uniform", "--name=mine"]
    commands = [["methods"], ["methods", "FedMine"], trained, [*fit, "--method.mu=-1"]]
    output, lines = tmp_path / "output", map("\n".join, commands)
    assert programs.finished(programs.commands_in, output, installed, *lines) == 0, output.read_text()
    listed, explained, fitted, refused, _ = output.read_text().split("exit code ")
    assert "FedMine" in listed
    for words in ("the tutorial of pfedst", "whose look differs between sites", "mu", "norm_statistics"):
        assert words in explained
    assert refused.startswith("0\n"), fitted
    assert (installed / "runs" / "mine" / "summary.json").is_file()
    assert output.read_text().endswith("exit code 2\n")
    assert "--method.mu -1.0 of FedMine: must be 0 or more" in refused
