"""What a figure shows, in words: its text for readers who do not see it. The numbers are those that are drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pfedst.errors import listed
from pfedst.reporting.comparison import Compared, OverSites
from pfedst.reporting.figures.style import mean_over_seeds
from pfedst.reporting.report_table import percent


def percents(value: float) -> str:
    """Return a share in percent."""
    return f"{percent(value)} %"


def extremes(values: Mapping[str, float | None], text: Callable[[float], str] = percents) -> str:
    """Name the highest and the lowest value, such as `highest A (61.2 %); lowest B (25.0 %)`.

    Args:
        values: by name; None if not defined.
        text: writes a value. Values with the same text are equal.
    """
    known = {name: value for name, value in values.items() if value is not None}
    if not known:
        return "no value is defined"
    ends = [text(end(known.values())) for end in (max, min)]
    names = [listed([name for name, value in known.items() if text(value) == end], most=3) for end in ends]
    if ends[0] == ends[1]:
        return f"{names[0]} ({ends[0]})"
    return f"highest {names[0]} ({ends[0]}); lowest {names[1]} ({ends[1]})"


def means_of_rows(compared: Compared, metric: str) -> str:
    """Name the rows with the highest and the lowest mean over sites and seeds."""
    return extremes({row.label: mean_over_seeds(row, OverSites.MEAN, metric) for row in compared.rows})
