"""A dot plot of every row at every site. It is readable with 2 to 16 rows."""

from __future__ import annotations

from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from pfedst.reporting.comparison import Compared, OverSites
from pfedst.reporting.figures.findings import extremes, means_of_rows
from pfedst.reporting.figures.saving import ReportFigure
from pfedst.reporting.figures.style import (
    GUIDE,
    WIDTH,
    RowStyle,
    mean_over_seeds,
    new_figure,
    protocol_caption,
    round_text,
    row_styles,
    seeds_text,
    shortened,
    text_inches,
    title_of_column,
)
from pfedst.reporting.tables import metric_title, metric_words

LEAST_SPAN = 5.0
"""Minimum range of a panel in percent: a smaller one would exaggerate noise."""


def bars(compared: Compared, metric: str) -> ReportFigure:
    """Draw one line per row and one panel per site. All panels have the same scale, each with its own range."""
    columns_of: list[str | OverSites] = [*compared.sites]
    if len(columns_of) > 1:
        columns_of.append(OverSites.MEAN)
    lines = -(-len(columns_of) // 5)
    columns = -(-len(columns_of) // lines)
    seeds = compared.has_spread
    description = (
        f"Personal model on {compared.protocol['split']}, {round_text(compared)}, {seeds_text(compared)}"
        + ("; large mark: mean, open circles: runs" if seeds else "")
        + f"; dashed: {compared.reference}"
    )
    height = 0.05 + lines * (0.42 + 0.165 * max(2, len(compared.rows)))
    widest = max(text_inches(shortened(row.label, 28), 7.5, "bold") for row in compared.rows)
    name = f"{metric_words(metric)} on {compared.protocol['split']}, %"
    figure = new_figure(compared, description, height, min(WIDTH, widest + 0.3 + columns * 1.9), axes=(name, ""))
    grid = figure.subplots(lines, columns, sharey=True, squeeze=False)
    styles = row_styles(compared)
    span = max([LEAST_SPAN, *(high - low for low, high in (_ends(compared, c, metric) for c in columns_of))]) * 1.12
    for number, (axes, column) in enumerate(zip(grid.flat, columns_of, strict=False)):
        title_of_column(axes, column, 18)
        _ranges(axes, compared, column, metric, styles)
        for y, row in enumerate(compared.rows):
            _draw(axes, y, [100 * value for value in row.values("personal", column, metric)], styles[row.label])
        _reference(axes, [100 * v for v in compared.row(compared.reference).values("personal", column, metric)])
        _frame(axes, _ends(compared, column, metric), span, len(compared.rows), left=number % columns == 0)
    for axes in grid.flat[len(columns_of) :]:
        axes.remove()
    _name_rows(grid[0][0], compared, styles)
    caption = (
        f"{metric_title(metric)} of the personal model on each site's {compared.protocol['split']} images and "
        f"its mean over sites, {seeds_text(compared)}. A percent is as wide in every panel, and panels start where "
        f"their values do. {protocol_caption(compared)}"
    )
    title = f"Sites: {metric_words(metric)} on {compared.protocol['split']}"
    return ReportFigure("bars", title, _finding(compared, metric), caption, figure)


def _finding(compared: Compared, metric: str) -> str:
    reference = compared.row(compared.reference)
    name, means = metric_title(metric), means_of_rows(compared, metric)
    by_site = extremes({site: mean_over_seeds(reference, site, metric) for site in compared.sites})
    return f"{name}, mean over sites: {means}. {name} of {reference.label} by site: {by_site}."


def _ends(compared: Compared, column: str | OverSites, metric: str) -> tuple[float, float]:
    values = [100 * value for row in compared.rows for value in row.values("personal", column, metric)]
    return (min(values), max(values)) if values else (50.0, 50.0)


def _draw(axes: Axes, y: int, values: list[float], style: RowStyle) -> None:
    if not values:
        return
    if len(values) > 1:
        seeds: dict[str, Any] = {"marker": "o", "markersize": 3.2, "markerfacecolor": "white", "markeredgewidth": 0.7}
        axes.plot(
            values, [y] * len(values), linestyle="none", markeredgecolor=style.color, zorder=3, label="seeds", **seeds
        )
    axes.plot([fmean(values)], [y], zorder=style.zorder + 1, label="mean", **style.mark)


def _ranges(axes: Axes, compared: Compared, column: str | OverSites, metric: str, styles: dict[str, RowStyle]) -> None:
    """Draw a line from the least to the highest seed of each row."""
    found = [(y, row, row.values("personal", column, metric)) for y, row in enumerate(compared.rows)]
    lines = [(y, 100 * min(values), 100 * max(values), styles[row.label].color) for y, row, values in found if values]
    if lines:
        heights, lows, highs, colors = zip(*lines, strict=True)
        axes.hlines(heights, lows, highs, colors=colors, linewidth=0.8, zorder=2)


def _reference(axes: Axes, values: list[float]) -> None:
    if values:
        axes.axvline(fmean(values), color=GUIDE, linewidth=0.7, linestyle=(0, (3, 2)), zorder=1, label="reference")


def _frame(axes: Axes, ends: tuple[float, float], span: float, rows: int, left: bool) -> None:
    middle = (ends[0] + ends[1]) / 2
    axes.set_xlim(middle - span / 2, middle + span / 2)
    axes.set_ylim(rows - 0.4, -0.6)
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    axes.grid(axis="y", visible=False)
    for y in range(0, rows, 2):
        axes.axhspan(y - 0.5, y + 0.5, color="#F5F5F5", zorder=0, linewidth=0)
    axes.tick_params(axis="y", length=0)
    axes.yaxis.set_visible(left)  # each tick that nobody sees costs as much as one that is seen
    axes.spines["left"].set_visible(False)


def _name_rows(axes: Axes, compared: Compared, styles: dict[str, RowStyle]) -> None:
    labels = [row.label for row in compared.rows]
    axes.set_yticks(range(len(labels)), [shortened(label, 28) for label in labels])
    for line in (line for line in axes.figure.axes if line.yaxis.get_visible()):
        for tick, label in zip(line.get_yticklabels(), labels, strict=False):
            tick.set(fontsize=7.5, weight=styles[label].weight)
