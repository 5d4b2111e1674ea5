"""`pfedst methods`: list the installed methods with their shared parts and cost.

The list is printed on the terminal or written as documentation pages. Costs are counted on the tensors of each method,
which needs torch: it is imported after the options are parsed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.markdown import Markdown
from rich.table import Table

from pfedst.cli.command_parser import CommandParser
from pfedst.reporting import console_of


def run_methods(arguments: Sequence[str]) -> int:
    """Print a table of all methods or the pages of some, or write all pages. Return the exit code."""
    parser = CommandParser(prog="pfedst methods", description="List and explain the installed methods.")
    parser.add_argument(
        "name", nargs="*", help="print the pages of these, by name or import path, instead of the table"
    )
    parser.add_argument(
        "--docs", type=Path, help="folder in which to write a page for every method, and README.md with the table"
    )
    given = parser.parse_args(arguments)
    from pfedst.cli.method_pages import HEADINGS, PROTOCOL, cells, page, pages
    from pfedst.methods.registry import get_method, registered_methods

    methods, console = registered_methods(), console_of(200)
    if given.docs:
        given.docs.mkdir(parents=True, exist_ok=True)
        for file, text in pages(methods).items():
            (given.docs / file).write_text(text)
        print(given.docs)
    elif given.name:
        for name in given.name:
            method = get_method(name)
            console.print(Markdown(page(method.__name__, method)))
    else:
        table = Table(title=f"Methods, with {PROTOCOL}")
        for heading in HEADINGS:
            table.add_column(heading, justify="right" if heading in HEADINGS[-3:] else "left")
        for name, method in methods.items():
            table.add_row(name, *cells(method))
        console.print(table, highlight=False)
        console.print("The page of one: pfedst methods NAME", highlight=False)
    return 0
