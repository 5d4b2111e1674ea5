"""`pfedst report`: tables and figures from finished runs, from their JSON alone."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from pfedst.reporting import console_of
from pfedst.reporting.formats import rich_report
from pfedst.reporting.loading import load_compared
from pfedst.reporting.summary import SELECTION_METRIC
from pfedst.reporting.write import write_files

WIDTH = 150


def run_report(arguments: Sequence[str]) -> int:
    """Report on the runs that are named; the exit code."""
    parser = argparse.ArgumentParser(
        prog="pfedst report", allow_abbrev=False, description="Tables and figures from finished runs."
    )
    parser.add_argument("runs", type=Path, nargs="+", help="folders of runs, or of comparisons")
    parser.add_argument("--reference", help="row the others are tested against; default: the comparison's, or PFedST")
    parser.add_argument("--metric", default=SELECTION_METRIC, help="default: %(default)s")
    parser.add_argument("--output", type=Path, help="folder; default: report/ in the only folder named, or report")
    given = parser.parse_args(arguments)
    write_report(given.runs, given.output, given.reference, given.metric)
    return 0


def write_report(
    paths: Sequence[Path],
    output: Path | None = None,
    reference: str | None = None,
    metric: str = SELECTION_METRIC,
) -> None:
    """Write every format, and print the tables.

    Raises:
        ConfigurationError: no finished run, no such row or metric.
        StateError: a damaged file, or a folder that cannot be written.
    """
    compared = load_compared(paths, reference)
    folder = output or (paths[0] / "report" if len(paths) == 1 else Path("report"))
    report = write_files(compared, folder, metric)
    console = console_of(WIDTH)
    console.print(rich_report(report, console.width), highlight=False)
    print(f"{folder / 'report.html'}: all of it, with figures; beside it Markdown, LaTeX, CSV, JSON, PNG and PDF")
