"""The pages run: Python fences of every page in one namespace a page, and console fences of the tutorials and the README."""

import shlex
import sys
import types
from pathlib import Path

import pytest

from pfedst.cli import main

sybil = pytest.importorskip("sybil", reason="the extra dev has it")
from sybil import Sybil  # noqa: E402
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser, SkipParser  # noqa: E402

pytestmark = pytest.mark.docs
ROOT = Path(__file__).parents[2]
PAGES = [path for path in sorted((ROOT / "docs").rglob("*.md")) if "```python\n" in path.read_text()]


class ConsoleParser(CodeBlockParser):
    """Runs the lines of pfedst in a console fence."""

    language = "console"

    def evaluate(self, example) -> None:
        for line in example.parsed.splitlines():
            if line.startswith("$ pfedst "):
                arguments = shlex.split(line.removeprefix("$ pfedst "), comments=True)
                code = main(arguments)
                assert code == 0, f"{example.path}:{example.line}: {line} ended with {code}"


def run_page(page: Path, folder: Path, monkeypatch, console: bool) -> int:
    """Run the fences of a page in a folder; the number of fences."""
    parsers = [PythonCodeBlockParser(), SkipParser(), *([ConsoleParser()] if console else [])]
    document = Sybil(parsers=parsers, path=str(page.parent), pattern=page.name).parse(page)
    module = types.ModuleType("page_of_the_documentation")
    monkeypatch.setitem(
        sys.modules, module.__name__, module
    )  # classes of a page are found by their module, as in a script
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PFEDST_CACHE", str(folder / "cache"))
    document.namespace = module.__dict__
    examples = list(document.examples())
    for example in examples:
        example.evaluate()
    return len(examples)


def test_all_tutorials_and_the_api_are_run() -> None:
    names = {path.relative_to(ROOT / "docs").as_posix() for path in PAGES}
    tutorials = {f"tutorials/{path.name}" for path in (ROOT / "docs" / "tutorials").glob("*.md")}
    assert tutorials | {"api.md", "index.md"} <= names
    assert len(tutorials) == 3  # the fourth is add-a-method.md: tests/test_tutorial.py


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_runs(page, tmp_path, monkeypatch, capsys) -> None:
    assert run_page(page, tmp_path, monkeypatch, console=page.parent.name == "tutorials")


def test_a_page_that_fails_is_reported(tmp_path, monkeypatch, capsys) -> None:
    page = tmp_path / "page.md"
    page.write_text("```console\n$ pfedst configs show none\n```\n")
    with pytest.raises(AssertionError, match=r"page.md:1: \$ pfedst configs show none ended with 2"):
        run_page(page, tmp_path, monkeypatch, console=True)
    page.write_text("```python\nx = 1\n```\n\n```python\nassert x == 2\n```\n")
    with pytest.raises(AssertionError):
        run_page(page, tmp_path, monkeypatch, console=False)
