"""What the README promises runs: its method, and the test command of the gate."""

import importlib
import re
from pathlib import Path

from pfedst.testing import CHECKS, check_method, fit

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_method_of_the_readme_keeps_the_contract_and_trains(tmp_path) -> None:
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL).group(1)
    scope: dict = {}
    exec(code, scope)
    method = scope["FedMine"](mu=0.1)
    for check in CHECKS:
        check_method(lambda: scope["FedMine"](mu=0.1), check)
    pulled, free = fit(tmp_path / "a", method), fit(tmp_path / "b", scope["FedMine"](mu=0.0))
    lines = [(tmp_path / name / "run" / "rounds.jsonl").read_text() for name in "ab"]
    assert pulled["cost"]["parameters_sent"] == free["cost"]["parameters_sent"]
    assert lines[0].split("trained")[1] != lines[1].split("trained")[1]


def test_the_gate_runs_the_test_command() -> None:
    assert "$ make test" in README
    assert "\nmake test\n" in (ROOT / ".ci" / "run").read_text()


def test_the_table_of_the_readme_is_that_of_the_results(monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    comparison = importlib.import_module("comparison")
    assert comparison.readme_table("fed_isic_ham4") in README


def test_files_that_the_readme_links_exist() -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", README) + re.findall(r"configs/[\w.]+yaml", README):
        assert (ROOT / link).exists(), link
