"""Runs the fences of pages: `python pages.py PAGE ...`, each in an empty folder here. It imports nothing of the tests."""

import os
import shlex
import sys
import types
from pathlib import Path

from sybil import Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser, SkipParser

from pfedst.cli import main


class ConsoleParser(CodeBlockParser):
    """Runs the lines of pfedst in a console fence."""

    language = "console"

    def evaluate(self, example) -> None:
        for line in example.parsed.splitlines():
            if line.startswith("$ pfedst "):
                code = main(shlex.split(line.removeprefix("$ pfedst "), comments=True))
                assert code == 0, f"{example.path}:{example.line}: {line} ended with {code}"


def run_page(page: Path, folder: Path, console: bool) -> int:
    """Run the Python fences of a page in one namespace, and its console fences, in a folder; the number of fences."""
    parsers = [PythonCodeBlockParser(), SkipParser(), *([ConsoleParser()] if console else [])]
    document = Sybil(parsers=parsers, path=str(page.parent), pattern=page.name).parse(page)
    module = types.ModuleType("page_of_the_documentation")
    sys.modules[module.__name__] = module  # classes of a page are found by their module, as those of a script
    document.namespace = module.__dict__
    before = Path.cwd()
    os.chdir(folder)
    try:
        examples = list(document.examples())
        for example in examples:
            example.evaluate()
    finally:
        os.chdir(before)
        del sys.modules[module.__name__]
    return len(examples)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        place = Path(Path(name).stem).absolute()
        place.mkdir()
        print(name, run_page(Path(name).absolute(), place, console=True), flush=True)
