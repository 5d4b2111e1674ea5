"""`pfedst report`: tables and figures from finished runs, from their JSON alone."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from pfedst.errors import ConfigurationError, nearest
from pfedst.reporting import console_of
from pfedst.reporting.comparison import Compared, load_compared
from pfedst.reporting.formats import csv_text, latex, latex_document, markdown, report_json, rich_report
from pfedst.reporting.make_report import make_report
from pfedst.state import json_bytes, write_atomically, writing

WIDTH = 150


def run_report(arguments: Sequence[str]) -> int:
    """Report on the runs that are named; the exit code."""
    parser = argparse.ArgumentParser(
        prog="pfedst report", allow_abbrev=False, description="Tables and figures from finished runs."
    )
    parser.add_argument("runs", type=Path, nargs="+", help="folders of runs, or of comparisons")
    parser.add_argument(
        "--reference", help="row that the others are tested against; default: the comparison's, or PFedST"
    )
    parser.add_argument("--metric", default="balanced_accuracy", help="default: %(default)s")
    parser.add_argument("--output", type=Path, help="folder; default: report/ in the only folder named, or report")
    given = parser.parse_args(arguments)
    write_report(given.runs, given.reference, given.metric, given.output)
    return 0


def write_report(
    paths: Sequence[Path],
    reference: str | None = None,
    metric: str = "balanced_accuracy",
    output: Path | None = None,
) -> Path:
    """Write every format, and print the tables.

    Returns:
        The folder.

    Raises:
        ConfigurationError: no finished run, no such row or metric.
        StateError: a damaged file, or a folder that cannot be written.
    """
    from pfedst.reporting.figures import make_figures, save_figure, svg_text
    from pfedst.reporting.page import html_page

    compared = load_compared(paths, reference)
    _check_metric(compared, metric)
    report = make_report(compared, metric)
    folder = output or (paths[0] / "report" if len(paths) == 1 else Path("report"))
    figures = make_figures(compared, metric)
    page = html_page(report, [(figure.title, figure.caption, svg_text(figure)) for figure in figures])
    files = {
        "report.md": markdown(report),
        "report.tex": latex_document(report),
        "report.html": page,
        **{f"{table.name}.tex": latex(table) for table in report.tables},
        **{f"{table.name}.csv": csv_text(table) for table in report.tables},
    }
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            write_atomically(folder / name, text.encode())
        write_atomically(folder / "report.json", json_bytes(report_json(report)))
        for figure in figures:
            save_figure(figure, folder)
    console = console_of(WIDTH)
    console.print(rich_report(report, console.width), highlight=False)
    print(f"{folder / 'report.html'}: all of it, with figures; beside it Markdown, LaTeX, CSV, JSON, PNG and PDF")
    return folder


def _check_metric(compared: Compared, metric: str) -> None:
    there = compared.rows[0].first.summary["personal"]["mean"]
    if metric not in there:
        raise ConfigurationError(
            f"--metric {metric}: no such metric.{nearest(metric, there)} There are: {', '.join(there)}"
        )
