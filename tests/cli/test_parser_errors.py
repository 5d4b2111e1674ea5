"""An error of a class that is given by its import path says why it cannot be imported, and where."""

import pytest

from pfedst.cli import main

MODULES = {
    "good": "class Other: ...\n",
    "broken": "\nimport torhc\nclass Method: ...\n",
    "misspelt": "class Method(:\n    ...\n",
    "hook": "from pfedst import FederatedMethod\nclass Method(FederatedMethod):\n    def agregate(self): ...\n",
    "raising": "from pathlib import Path\nPath('/nowhere/at/all').read_text()\n",
}


@pytest.mark.parametrize(
    ("option", "meant"),
    [
        ("--rounds", '"--coordinator.rounds"'),
        ("--lr", '"--model.optimizer.lr"'),
        ("--mu", '"--method.mu"'),
        ("--batch_size", '"--data.batch_size"'),
        ("--nam", '"name"'),
        ("--coordinatr.rounds", '"--coordinator.rounds"'),
    ],
)
def test_an_option_without_its_section(capsys, option, meant) -> None:
    assert main(["fit", "--config=demo", f"{option}=3"]) == 2
    assert f"Did you mean {meant}?" in capsys.readouterr().err


def test_a_comparison_is_not_the_configuration_of_one_run(tmp_path, capsys) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text('base: demo\nseeds: [0]\nrows: {"FedAvg, mine": {method: FedAvg}}\n')
    assert main(["fit", f"--config={file}"]) == 2
    assert f"{file}: a comparison" in (error := capsys.readouterr().err)
    assert f"pfedst compare --config {file}" in error


def test_the_help_begins_with_what_to_give_and_ends_with_the_trainer(capsys) -> None:
    for command, what in (("fit", "--config NAME|FILE"), ("test", "RUN|MODEL")):
        assert main([command, "--help"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == f"usage: pfedst {command} {what} [--KEY VALUE ...]"
        assert next(i for i, line in enumerate(lines) if "--trainer." in line) > max(
            i for i, line in enumerate(lines) if "--coordinator." in line
        )


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("nowhere.Method", ['there is no module "nowhere"', "PYTHONPATH"]),
        ("nowhere.inner.Method", ['there is no module "nowhere"']),
        ("good.inner.Method", ['there is no module "good.inner"']),
        ("good.Othr", ['module good has no class "Othr". Did you mean "Other"?']),
        ("good.Other", ["Other is no FederatedMethod"]),
        ("broken.Method", ["importing broken failed: ModuleNotFoundError", "torhc", "broken.py, line 2"]),
        ("misspelt.Method", ["importing misspelt failed: SyntaxError", "misspelt.py, line 1"]),
        ("hook.Method", ["method Method (hook): agregate is no hook or declaration"]),
        ("raising.Method", ["importing raising failed: FileNotFoundError"]),
    ],
)
def test_a_class_that_cannot_be_imported(tmp_path, monkeypatch, capsys, path, told) -> None:
    for name, text in MODULES.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert main(["fit", "--config=demo", f"--method={path}", f"--runs_dir={tmp_path}"]) == 2
    error = capsys.readouterr().err
    for text in ("--method", *told):
        assert text in error
    assert "Traceback" not in error
