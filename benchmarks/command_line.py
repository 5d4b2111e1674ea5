"""What the scripts have in common: the commands `run` and `table`, a row in a process of its own, a file of results."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from environment import environment

Commands = Any
"""What `add_subparsers` returns: argparse does not name its type."""


def run_and_table(description: str | None) -> tuple[argparse.ArgumentParser, Commands, argparse.ArgumentParser]:
    """Return a parser with the commands `run` and `table`, its commands, and the parser of `run`.

    Args:
        description: docstring of the script.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("run")
    commands.add_parser("table")
    return parser, commands, runs


def one_command(commands: Commands) -> argparse.ArgumentParser:
    """Return the parser of the command `one`, which makes one row; `run` starts it as a process for each."""
    parser: argparse.ArgumentParser = commands.add_parser("one", help="make one run and print its figures as JSON")
    return parser


def row_of_a_process(script: str, *arguments: object) -> Any:
    """Start `script one ARGUMENTS` as a process; return the JSON on its last line."""
    command = [sys.executable, "-W", "ignore", script, "one", *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def save(file: Path, content: Mapping[str, Any]) -> None:
    """Write results with the environment in which they were measured, unless they hold one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"environment": environment()} | dict(content), indent=2) + "\n")


def run_study(
    description: str | None,
    studies: Iterable[str],
    run: Callable[[str, Path, Path, list[str]], None],
    table: Callable[[str], None],
) -> None:
    """Parse the arguments of a study on real images and run it, or print its table.

    They are `run STUDY --root FOLDER --weights FILE` and `table STUDY`.

    Args:
        description: docstring of the script.
        studies: their names.
        run: called with the study, the folder of images, the weights, and rows (none for all).
        table: called with the study.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    runs, tables = commands.add_parser("run"), commands.add_parser("table")
    for command in (runs, tables):
        command.add_argument("study", choices=list(studies))
    runs.add_argument("--root", type=Path, required=True)
    runs.add_argument("--weights", type=Path, required=True)
    runs.add_argument("--only", nargs="*", default=[], help="rows; default: all")
    given = parser.parse_args()
    if given.command == "table":
        table(given.study)
    else:
        run(given.study, given.root, given.weights, given.only)
