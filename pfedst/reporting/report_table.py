"""A table of a report, as data: every format is made of the same cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Mark = Literal["", "best", "second"]


@dataclass(frozen=True)
class Cell:
    """What stands in a cell.

    Attributes:
        text: as it is shown.
        value: to sort by, and for CSV and JSON; None where the cell is words, or a number that is not defined.
        spread: deviation over seeds, in the unit of `value`; None where there is none.
        mark: of the best and the second best in a column.
    """

    text: str
    value: float | None = None
    spread: float | None = None
    mark: Mark = ""


@dataclass(frozen=True)
class ReportTable:
    """One table.

    Attributes:
        name: of its files and its anchor, such as `results`.
        title: a line.
        caption: what the numbers mean; sentences.
        headings: one a column; the first column names the row.
        rows: cells, as many as headings.
    """

    name: str
    title: str
    caption: str
    headings: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


def marked(column: Sequence[Cell], higher_is_better: bool, ranked: Sequence[bool]) -> list[Cell]:
    """A column with its best and second best marked; of equals all are.

    Args:
        column: the cells.
        higher_is_better: what best is.
        ranked: whether a cell takes part.
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
