"""A method from another wheel appears without touching this repository; a broken one does not stop the others."""

import logging
import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest

from pfedst import registry
from pfedst.errors import ConfigurationError

METHOD = '''
from pfedst.method import FederatedMethod


class FedMine(FederatedMethod):
    """Uniform averaging of everything but the up-projection."""

    source = "a stranger's wheel"

    def partition(self, client):
        return [("side.up.*", "personal"), ("*", "shared")]
'''
PROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "fedmine"
version = "1.0"
[project.entry-points."pfedst.methods"]
FedMine = "fedmine:FedMine"
[tool.setuptools]
py-modules = ["fedmine"]
"""


def test_a_method_of_another_wheel_is_listed_and_trains(tmp_path) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "pyproject.toml").write_text(PROJECT)
    (tmp_path / "project" / "fedmine.py").write_text(METHOD)
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    built = subprocess.run([*pip, "--target", "site", "./project"], cwd=tmp_path, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    # another interpreter: entry points of this one stay as they are
    script = (
        "import sys; sys.path.insert(0, 'site')\n"
        "from pfedst.cli import main\n"
        "from tests.cli.test_main import SMALL\n"
        "assert main(['methods']) == main(['methods', 'FedMine']) == 0\n"
        "sys.exit(main(['fit', *SMALL, '--method=FedMine', '--method.weighting=uniform', '--name=mine']))\n"
    )
    root = str(registry.__file__).rsplit("/pfedst/", 1)[0]
    run = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.append({root!r})\n{script}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert "FedMine" in run.stdout
    assert "a stranger's" in run.stdout
    assert (tmp_path / "runs" / "mine" / "summary.json").is_file()


def points(*pairs):
    return lambda group: [EntryPoint(name, value, group) for name, value in pairs]


def test_a_broken_method_is_a_warning(monkeypatch, caplog) -> None:
    monkeypatch.setattr(
        registry, "entry_points", points(("Bad", "no.such:Bad"), ("Local", "pfedst.baselines.local:Local"))
    )
    with caplog.at_level(logging.WARNING, "pfedst"):
        assert list(registry.registered_methods()) == ["Local"]
    assert "Bad" in caplog.text


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        ([("A", "a:A"), ("A", "b:A")], ["two installed packages", "a:A", "b:A"]),
        ([("Other", "pfedst.baselines.local:Local")], ["Other", "is called Other"]),
        ([("Path", "pathlib:Path")], ["subclass"]),
    ],
)
def test_wrong_entry_points_are_refused(monkeypatch, pairs, words) -> None:
    monkeypatch.setattr(registry, "entry_points", points(*pairs))
    with pytest.raises(ConfigurationError) as caught:
        registry.registered_methods()
    assert [word for word in words if word not in str(caught.value)] == []
