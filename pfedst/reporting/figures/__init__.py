"""Figures of a report: drawn once, then written as PNG, PDF or SVG with reproducible bytes."""

from __future__ import annotations

from dataclasses import replace

from pfedst.reporting.comparison import Compared
from pfedst.reporting.figures.bars import bars
from pfedst.reporting.figures.calibrated import calibrated_reliability, risk_coverage
from pfedst.reporting.figures.classes import classes
from pfedst.reporting.figures.confusion import confusion
from pfedst.reporting.figures.cost import cost
from pfedst.reporting.figures.curves import learning_curves
from pfedst.reporting.figures.names import fonts_for, with_drawable_names
from pfedst.reporting.figures.reliability import reliability
from pfedst.reporting.figures.saving import ReportFigure, save_figure, svg_text
from pfedst.reporting.figures.style import figure_style, settle

__all__ = ["ReportFigure", "make_figures", "save_figure", "svg_text"]

KINDS = (learning_curves, bars, confusion, classes, reliability, calibrated_reliability, risk_coverage, cost)
"""In the order of the tables."""


def make_figures(compared: Compared, metric: str = "balanced_accuracy") -> list[ReportFigure]:
    """Draw learning curves, sites, confusion, classes, reliability, risk and cost. A figure without content is skipped.

    Args:
        compared: runs to draw.
        metric: metric of the curves, the sites and the cost, by which rows are also ranked.

    Raises:
        StateError: If the records of a run are missing or damaged.
    """
    fonts = fonts_for(compared)
    shown, told = with_drawable_names(compared, fonts)
    with figure_style(fonts):
        made = [figure for kind in KINDS if (figure := kind(shown, metric)) is not None]
        for figure in made:
            settle(figure.figure)
    return [replace(figure, caption=f"{figure.caption} {told}".strip()) for figure in made]
