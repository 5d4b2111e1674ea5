"""The command line of the studies on real images: `run STUDY --root FOLDER --weights FILE` and `table STUDY`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path


def run_study(
    description: str | None,
    studies: Iterable[str],
    run: Callable[[str, Path, Path, list[str]], None],
    table: Callable[[str], None],
) -> None:
    """Parse the arguments and run a study, or print its table.

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
