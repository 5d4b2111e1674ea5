"""The data of a table in a report. Every format is rendered from the same cells."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import Literal

Mark = Literal["", "best", "second"]


@dataclass(frozen=True)
class Cell:
    """Content of a cell.

    Attributes:
        text: displayed text.
        value: number for sorting, CSV and JSON; None if the cell is words or an undefined number.
        spread: standard deviation over seeds, in the unit of `value`, or None.
        mark: mark of the best and the second best cell of a column.
    """

    text: str
    value: float | None = None
    spread: float | None = None
    mark: Mark = ""


@dataclass(frozen=True)
class ReportTable:
    """One table.

    Attributes:
        name: name of its files and its anchor, such as `results`.
        title: one line.
        caption: sentences that explain the numbers.
        headings: one heading per column; the first column names the row.
        rows: as many cells as headings in each row.
    """

    name: str
    title: str
    caption: str
    headings: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def without_marks(self) -> ReportTable:
        """Return the table with no cell marked as best or second best."""
        rows = tuple(tuple(replace(cell, mark="") for cell in row) for row in self.rows)
        return replace(self, rows=rows)


def percent(value: float | None) -> str:
    """Return a share as a percentage with one decimal, or a dash if it is not defined."""
    return "-" if value is None else f"{100 * value:.1f}"


def points_cell(value: float | None) -> Cell:
    """Return a difference of shares in points, with its sign; a dash if it is not defined."""
    return Cell("-") if value is None else Cell(f"{100 * value:+.1f}", value)


def interval_cell(interval: tuple[float, float] | None) -> Cell:
    """Return an interval of a difference of shares in points; a dash without one."""
    return Cell("-") if interval is None else Cell(f"{100 * interval[0]:+.1f} to {100 * interval[1]:+.1f}")


def p_cell(p_value: float | None) -> Cell:
    """Return a p-value with three decimals; a dash without one."""
    if p_value is None:
        return Cell("-")
    return Cell("< 0.001" if p_value < 0.001 else f"{p_value:.3f}", p_value)


def mean_cell(values: Sequence[float], text: Callable[[float | None], str]) -> Cell:
    """Return the mean of one value a seed with its standard deviation; a dash without values."""
    if not values:
        return Cell("-")
    spread = stdev(values) if len(values) > 1 else None
    mean = fmean(values)
    return Cell(text(mean) if spread is None else f"{text(mean)} ± {text(spread)}", mean, spread)


def marked(column: Sequence[Cell], higher_is_better: bool, ranked: Sequence[bool]) -> list[Cell]:
    """Mark the best and second best cells of a column. Equal cells get the same mark.

    Args:
        column: the cells.
        higher_is_better: True if the largest value is the best.
        ranked: for each cell, True if it takes part.
    """
    values = sorted(
        {
            round(cell.value, 12)
            for cell, takes_part in zip(column, ranked, strict=True)
            if takes_part and cell.value is not None
        },
        reverse=higher_is_better,
    )
    marks: dict[float, Mark] = dict(zip(values, ("best", "second"), strict=False))
    return [
        Cell(cell.text, cell.value, cell.spread, marks.get(round(cell.value, 12), ""))
        if takes_part and cell.value is not None
        else cell
        for cell, takes_part in zip(column, ranked, strict=True)
    ]
