"""Write a report to disk: an HTML page, Markdown, LaTeX, CSV, JSON, and each figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pfedst.errors import ConfigurationError, nearest
from pfedst.reporting.comparison import Compared
from pfedst.reporting.environment import environment
from pfedst.reporting.formats import csv_text, markdown, report_json
from pfedst.reporting.latex import latex, latex_document
from pfedst.reporting.make_report import make_report
from pfedst.reporting.page import PageFigure, html_page
from pfedst.reporting.report import FigureFormat, Report
from pfedst.reporting.summary import SELECTION_METRIC
from pfedst.state import json_bytes, write_atomically, writing


def write_files(
    compared: Compared, folder: Path, metric: str = SELECTION_METRIC, figures: Sequence[FigureFormat] = ()
) -> Report:
    """Write every format into a folder, and return the report.

    Args:
        compared: finished runs.
        folder: target folder, created if it does not exist. Files of an earlier report are replaced.
        metric: metric by which rows are compared.
        figures: formats of files with one figure each; the HTML page holds all figures.

    Raises:
        ConfigurationError: If there is no such metric.
        StateError: If the folder cannot be written, or the records of a run are damaged.
    """
    there = compared.rows[0].first.summary["personal"]["mean"]
    if metric not in there:
        raise ConfigurationError(
            f"--metric {metric}: no such metric.{nearest(metric, there)} There are: {', '.join(there)}"
        )
    report = make_report(compared, metric, environment())
    from pfedst.reporting.figures import make_figures, save_figure, svg_text  # imports matplotlib

    drawn = make_figures(compared, metric)
    files = {
        "report.md": markdown(report),
        "report.tex": latex_document(report),
        "report.html": html_page(report, [PageFigure(one.title, one.caption, svg_text(one)) for one in drawn]),
        **{f"{table.name}.tex": latex(table) for table in report.tables},
        **{f"{table.name}.csv": csv_text(table) for table in report.tables},
    }
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            write_atomically(folder / name, text.encode())
        write_atomically(folder / "report.json", json_bytes(report_json(report)))
        for figure in drawn:
            save_figure(figure, folder, figures)
    return report
