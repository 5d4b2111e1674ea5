"""The rules of the house that a program can check."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE, BASELINES = ROOT / "pfedst", ROOT / "baselines" / "pfedst_baselines"
SOURCES = {path.relative_to(PACKAGE): path.read_text() for path in PACKAGE.rglob("*.py")}
METHODS = {path.relative_to(BASELINES): path.read_text() for path in BASELINES.rglob("*.py")}


def imported(text):
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_nothing_imports_the_baselines() -> None:
    for path, text in SOURCES.items():
        assert not [name for name in imported(text) if name.startswith("pfedst_baselines")], path


def test_lower_rooms_know_nothing_of_higher_ones() -> None:
    higher = (
        "pfedst.cli",
        "pfedst.server.coordinator",
        "pfedst.server.rounds",
        "pfedst.server.server",
        "pfedst.methods.interface",
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


def code_lines(text: str) -> int:
    """Lines of a module that hold code: no blank ones, comments or docstrings."""
    tree = ast.parse(text)
    documented = [n for n in ast.walk(tree) if isinstance(n, ast.Module | ast.ClassDef | ast.FunctionDef)]
    bodies = [node.body[0] for node in documented if ast.get_docstring(node)]
    prose = {line for body in bodies for line in range(body.lineno, body.end_lineno + 1)}
    lines = enumerate(text.split("\n"), 1)
    return sum(1 for number, line in lines if line.strip() and not line.strip().startswith("#") and number not in prose)


def test_a_baseline_is_small_and_has_no_loop_over_epochs_no_device_and_no_file() -> None:
    for path, text in METHODS.items():
        assert code_lines(text) <= (25 if path.stem in ("fedavg", "local", "fedper", "fedbn") else 60), path
        names = {node.attr for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Attribute)}
        names |= {node.id for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)}
        assert not names & {"to", "cuda", "cpu", "device", "open", "DataLoader", "Path", "max_epochs", "backward"}, path
