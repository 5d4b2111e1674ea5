"""What the README promises: its first screen, its length, its links, the table of the results.

Its commands and its Python run in an empty folder with the wheel: tests/test_packaging.py.
"""

import importlib
import json
import re
from pathlib import Path

import pytest

from pfedst.configuration.shipped import shipped

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
RESULTS = (ROOT / "docs" / "results.md").read_text()


def test_it_has_at_most_900_words() -> None:
    text = re.sub(r"\]\([^)]*\)", "]", README)
    assert len(text.split()) <= 900


def test_its_first_60_lines_say_what_a_stranger_needs() -> None:
    first = "\n".join(README.splitlines()[:60])
    places = [
        first.index(words)
        for words in (
            "is for researchers",
            "**simulated**",
            "**deployed**",
            "not a medical device",
            "docs/images/schematic.svg",
            "$ make demo",
            "$ make test",
            "$ pip install",
            "$ pfedst fit --config demo",
            "RANDOM WEIGHTS",
            "```python",
            "$ pfedst data init",
        )
    ]
    assert places == sorted(places)


def test_the_gate_runs_the_test_command() -> None:
    assert "\nmake test\n" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize("name", ["fed_isic_ham4", "fed_isic_ham4_folds"])
def test_the_tables_of_the_page_of_results_are_those_of_the_results(name, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    comparison = importlib.import_module("comparison")
    assert comparison.readme_table(name) in RESULTS


def test_the_claims_of_the_page_of_results_are_those_of_the_results() -> None:
    report = json.loads((ROOT / "benchmarks/results/comparison/fed_isic_ham4_folds.json").read_text())
    (claims,) = (table for table in report["tables"] if table["name"] == "claims")
    rows = [dict(zip(claims["headings"], (cell["text"] for cell in row), strict=True)) for row in claims["rows"]]
    assert len(rows) == 4
    for row in rows:
        figures = " | ".join(row[name] for name in ("difference", "interval", "p", "p, Holm", "detectable"))
        assert f" | {figures} |" in RESULTS
        assert row["claim"] == "none"  # as the README and the page say


def test_the_shipped_defaults_on_the_page_of_results_are_those_of_the_study(monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    for row in importlib.import_module("recipe").page_rows():
        assert row in RESULTS


def test_the_short_table_is_a_part_of_the_page_of_results() -> None:
    rows = re.findall(r"^\| (\w+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", README, re.M)
    assert [method for method, *_ in rows] == ["Local", "FedAvg", "FedPer", "Ditto", "PFedST"]
    for method, mean, worst, accuracy in rows:
        found = re.search(rf"^\| {method} +\|(.*)\|$", RESULTS, re.M)
        assert found, method
        cells = [cell.split("±")[0].strip() for cell in found[1].split("|")]
        assert [cells[0], cells[1], cells[4]] == [mean, worst, accuracy], method


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "SECURITY.md"])
def test_files_that_it_links_exist(name) -> None:
    text = (ROOT / name).read_text()
    for link in re.findall(r"\]\(([^)#]+)\)", text) + re.findall(r"configs/[\w.]+yaml", text):
        assert link.startswith("https://") or (ROOT / link).exists(), link


def test_configurations_that_it_names_are_shipped() -> None:
    assert set(re.findall(r"--config (\w+)", README)) <= set(shipped())
