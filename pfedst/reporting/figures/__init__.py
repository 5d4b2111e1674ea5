"""Figures of a report: drawn once, then written as PNG, PDF or SVG, the same bytes every time."""

from __future__ import annotations

from pfedst.reporting.comparison import Compared
from pfedst.reporting.figures.bars import bars
from pfedst.reporting.figures.confusion import confusion
from pfedst.reporting.figures.cost import cost
from pfedst.reporting.figures.curves import learning_curves
from pfedst.reporting.figures.reliability import reliability
from pfedst.reporting.figures.saving import ReportFigure, save_figure, svg_text
from pfedst.reporting.figures.style import house_style, settle

__all__ = ["ReportFigure", "make_figures", "save_figure", "svg_text"]

KINDS = (learning_curves, bars, cost, confusion, reliability)


def make_figures(compared: Compared, metric: str = "balanced_accuracy") -> list[ReportFigure]:
    """Learning curves, sites, cost, confusion and reliability; a figure that has nothing to show is left out.

    Args:
        compared: what they are of.
        metric: of the curves, the sites and the cost, and what rows are ranked by.

    Raises:
        StateError: the records of a run are missing or damaged.
    """
    with house_style():
        made = [figure for kind in KINDS if (figure := kind(compared, metric)) is not None]
        for figure in made:
            settle(figure.figure)
    return made
