"""The data of a report, from which every format is rendered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from pfedst.reporting.report_table import ReportTable

FigureFormat = Literal["png", "pdf"]
FIGURE_FORMATS: tuple[FigureFormat, ...] = get_args(FigureFormat)
"""Of files with one figure each."""


@dataclass(frozen=True)
class Report:
    """Tables and the protocol of their numbers.

    Attributes:
        title: one line, such as `demo: 5 methods, 4 sites, 3 seeds`.
        protocol: lines that describe how the numbers were obtained.
        notes: warnings that a reader must see: too few seeds for a claim, random weights, synthetic images.
        tables: tables in reading order.
    """

    title: str
    protocol: tuple[str, ...]
    notes: tuple[str, ...]
    tables: tuple[ReportTable, ...]
