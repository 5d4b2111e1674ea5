"""The rules of the house that a program can check."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "pfedst"
SOURCES = {path.relative_to(PACKAGE): path.read_text() for path in PACKAGE.rglob("*.py")}


def imported(text):
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_nothing_imports_the_baselines() -> None:
    for path, text in SOURCES.items():
        if path.parts[0] != "baselines":
            assert not [name for name in imported(text) if name.startswith("pfedst.baselines")], path


def test_lower_rooms_know_nothing_of_higher_ones() -> None:
    higher = (
        "pfedst.cli",
        "pfedst.coordinator",
        "pfedst.rounds",
        "pfedst.federation",
        "pfedst.method",
        "pfedst.client",
    )
    for path, text in SOURCES.items():
        if path.parts[0] in ("encoders", "adapters", "data", "evaluation"):
            assert not [name for name in imported(text) if name.startswith(higher)], path


def test_no_pickle() -> None:
    for path, text in SOURCES.items():
        assert "pickle" not in set(imported(text)), path
        assert "torch.save(" not in text, path
        # the one mention tells users how to convert a file themselves
        assert "torch.load(" not in text or path == Path("encoders/weights.py"), path
