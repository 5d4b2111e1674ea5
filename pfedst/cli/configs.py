"""`pfedst configs`: list, print and copy the configurations that come with pfedst."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from pfedst.cli.command_parser import CommandParser
from pfedst.configuration.shipped import COMPARE, shipped
from pfedst.errors import ConfigurationError, nearest
from pfedst.reporting import console_of
from pfedst.state import write_atomically, writing

COMMANDS = {"": "pfedst fit --config {}", COMPARE: "pfedst compare --config {}", "sweeps": "pfedst configs copy {}"}
"""Folder of a configuration -> the command that takes its name."""


def run_configs(arguments: Sequence[str]) -> int:
    """List, print or copy shipped configurations. Return the exit code."""
    parser = CommandParser(prog="pfedst configs", description="Configurations that come with pfedst.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="list name, command and purpose")
    show = commands.add_parser("show", help="print a configuration")
    show.add_argument("name", help="name from pfedst configs list")
    copy = commands.add_parser("copy", help="write a copy that you can edit")
    copy.add_argument("name", help="name from pfedst configs list")
    copy.add_argument("target", type=Path, nargs="?", help="file to write; default: NAME.yaml here")
    given = parser.parse_args(arguments)
    if given.command == "list":
        _list()
    elif given.command == "show":
        print(_file(given.name).read_text(), end="")
    else:
        _copy(given.name, given.target)
    return 0


def _list() -> None:
    table = Table(title="Shipped configurations")
    for heading in ("name", "command", "purpose"):
        table.add_column(heading, overflow="fold")
    for name, file in shipped().items():
        folder, _, base = name.rpartition("/")
        text = COMMANDS[folder].format(name if folder == "sweeps" else base)
        table.add_row(name, text, _purpose(file))
    console_of(160).print(table, highlight=False)


def _purpose(file: Path) -> str:
    """Return the first sentence of the comment with which a configuration begins."""
    comment = itertools.takewhile(lambda line: line.startswith("#"), file.read_text().splitlines())
    return " ".join(line.removeprefix("#").strip() for line in comment).partition(". ")[0].removesuffix(".") + "."


def _file(name: str) -> Path:
    files = shipped()
    if name not in files:
        raise ConfigurationError(
            f'there is no shipped configuration "{name}".{nearest(name, files)} There are: {", ".join(files)}'
        )
    return files[name]


def _copy(name: str, target: Path | None) -> None:
    """Write a copy. The base of a comparison is a name, so that the copy runs in any folder."""
    file = _file(name)
    written = target or Path(f"{file.stem}.yaml")
    if written.exists():
        raise ConfigurationError(f"{written} exists and is not overwritten; name another file")
    with writing(written):
        write_atomically(written, file.read_bytes())
    print(written)
