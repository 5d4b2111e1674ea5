"""An error of a class that is given by its import path says why it cannot be imported, and where."""

import pytest

from pfedst.cli import main

MODULES = {
    "good": "class Other: ...\n",
    "broken": "\nimport torhc\nclass Method: ...\n",
    "misspelt": "class Method(:\n    ...\n",
    "raising": "from pathlib import Path\nPath('/nowhere/at/all').read_text()\n",
}


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
