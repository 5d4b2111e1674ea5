"""A report as data: what every format tells."""

from __future__ import annotations

from dataclasses import dataclass

from pfedst.reporting.report_table import ReportTable


@dataclass(frozen=True)
class Report:
    """Tables and what their numbers mean.

    Attributes:
        title: a line, such as `demo: 5 methods, 4 sites, 3 seeds`.
        protocol: lines that say how the numbers came about.
        notes: warnings that a reader must not miss: too few seeds to claim, random weights, synthetic images.
        tables: in the order of reading.
    """

    title: str
    protocol: tuple[str, ...]
    notes: tuple[str, ...]
    tables: tuple[ReportTable, ...]
