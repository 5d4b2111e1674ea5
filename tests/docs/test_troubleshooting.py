"""Each message on the page of troubleshooting is one that the software has."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEADINGS = re.findall(r"^### `(.*)`$", (ROOT / "docs" / "troubleshooting.md").read_text(), re.M)


def texts():
    """Every string of the package, with what is filled in left out."""
    for path in (ROOT / "pfedst").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value
            elif isinstance(node, ast.JoinedStr):
                yield "".join(part.value for part in node.values if isinstance(part, ast.Constant))


ALL = "\n".join(texts())


@pytest.mark.parametrize("words", HEADINGS)
def test_a_heading_is_a_message(words) -> None:
    assert words in ALL


def test_there_are_headings() -> None:
    assert len(HEADINGS) > 12
