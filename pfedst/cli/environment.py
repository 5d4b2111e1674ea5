"""`pfedst env`: versions and hardware, for bug reports."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from pfedst.reporting.environment import environment, environment_lines


def print_environment(arguments: Sequence[str]) -> int:
    """Print what a report names, too. Return the exit code."""
    parser = argparse.ArgumentParser(
        prog="pfedst env", allow_abbrev=False, description="Print versions, date and hardware, as in a report."
    )
    parser.parse_args(arguments)
    print("\n".join(environment_lines(environment())))
    return 0
