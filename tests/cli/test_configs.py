"""`pfedst configs`: the configurations that come with pfedst, in any folder."""

from pathlib import Path

import pytest

from pfedst.cli import main
from pfedst.comparison.plan import make_plan
from pfedst.configuration.shipped import shipped
from pfedst.configuration.yaml_text import read_yaml

CONFIGS = Path(__file__).parents[2] / "configs"


def test_they_are_listed_with_their_commands(capsys) -> None:
    assert main(["configs", "list"]) == 0
    printed = capsys.readouterr().out
    for name in shipped():
        assert f"│ {name} " in printed
    assert "pfedst compare --config fed_drg" in printed
    assert "pFedST across four synthetic sites, without a model hub" in printed


def test_one_is_shown_as_it_is(capsys) -> None:
    assert main(["configs", "show", "compare/demo"]) == 0
    assert capsys.readouterr().out == (CONFIGS / "compare" / "demo.yaml").read_text()
    assert main(["configs", "show", "compare/demi"]) == 2
    assert 'Did you mean "compare/demo"?' in capsys.readouterr().err


def test_a_copy_runs_where_it_lies_and_nothing_is_overwritten(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["configs", "copy", "compare/demo"]) == 0
    plan = make_plan(read_yaml(Path("demo.yaml")), Path("demo.yaml"))
    assert plan.base == CONFIGS / "demo.yaml"
    assert main(["configs", "copy", "demo"]) == 2
    assert "demo.yaml exists and is not overwritten" in capsys.readouterr().err
    assert main(["configs", "copy", "demo", "mine.yaml"]) == 0
    assert Path("mine.yaml").read_bytes() == (CONFIGS / "demo.yaml").read_bytes()


@pytest.mark.parametrize("arguments", [[], ["lst"]])
def test_other_commands_are_refused(arguments) -> None:
    assert main(["configs", *arguments]) == 2
