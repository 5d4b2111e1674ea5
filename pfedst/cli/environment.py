"""`pfedst env`: versions and hardware, for bug reports."""

from __future__ import annotations

from collections.abc import Sequence

from pfedst.cli.command_parser import CommandParser
from pfedst.reporting.environment import environment, environment_lines


def print_environment(arguments: Sequence[str]) -> int:
    """Print what a report names, too. Return the exit code."""
    parser = CommandParser(prog="pfedst env", description="Print versions, date and hardware, as in a report.")
    parser.parse_args(arguments)
    print("\n".join(environment_lines(environment())))
    return 0
