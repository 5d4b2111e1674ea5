"""Python fences of every page run, in one namespace a page. Those of README and tutorials: tests/test_packaging.py."""

from pathlib import Path

import pytest

pytest.importorskip("sybil", reason="the extra dev has it")
from tests.docs.pages import run_page

pytestmark = pytest.mark.docs
DOCS = Path(__file__).parents[2] / "docs"
PAGES = [path for path in sorted(DOCS.glob("*.md")) if "```python\n" in path.read_text()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_runs(page, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("PFEDST_CACHE", str(tmp_path / "cache"))
    assert run_page(page, tmp_path, console=False)


def test_a_page_that_fails_is_reported(tmp_path, capsys) -> None:
    page = tmp_path / "page.md"
    page.write_text("```console\n$ pfedst configs show none\n```\n")
    with pytest.raises(AssertionError, match=r"page.md:1: \$ pfedst configs show none ended with 2"):
        run_page(page, tmp_path, console=True)
    page.write_text("```python\nx = 1\n```\n\n```python\nassert x == 2\n```\n")
    with pytest.raises(AssertionError):
        run_page(page, tmp_path, console=False)
    page.write_text("<!-- skip: next -->\n```python\nassert False\n```\n")
    assert run_page(page, tmp_path, console=False)
