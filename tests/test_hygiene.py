"""What a stranger finds at the top of the repository is there, and true of this version."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from pfedst import __version__

ROOT = Path(__file__).parents[1]
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


def test_the_citation_is_of_this_version_and_its_date() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    latest = re.search(r"^## (\S+) - (\d{4}-\d\d-\d\d)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert latest is not None
    assert citation["version"] == __version__ == latest[1]
    assert str(citation["date-released"]) == latest[2]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.stem)
def test_an_issue_form_is_one_that_the_platform_takes(form) -> None:
    found = yaml.safe_load(form.read_text())
    assert {"name", "description", "body"} <= found.keys()
    fields = [field for field in found["body"] if field["type"] != "markdown"]
    assert len({field["id"] for field in fields}) == len(fields) > 0
    assert all(field["attributes"]["label"] for field in fields)


def test_the_commands_that_contributors_are_asked_for_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    asked = re.findall(r"`make ([a-z-]+)`", (ROOT / ".github" / "PULL_REQUEST_TEMPLATE.md").read_text())
    assert set(asked) <= targets
    assert asked


@pytest.mark.skipif(not (ROOT / ".git").exists() or shutil.which("git") is None, reason="not a git checkout")
def test_kept_summaries_are_not_ignored_and_runs_are() -> None:
    kept = "benchmarks/results/comparison/runs/fed_isic_ham4/runs/row-seed0.json"
    ignored = subprocess.run(["git", "check-ignore", kept, "runs/first/summary.json"], cwd=ROOT, capture_output=True)
    assert ignored.stdout.decode().split() == ["runs/first/summary.json"]
