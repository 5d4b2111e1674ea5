"""The metric of each row against its cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from pfedst.reporting.comparison import Compared, OverSites, RunsOfARow
from pfedst.reporting.figures.findings import extremes, means_of_rows
from pfedst.reporting.figures.labels import Labelled, label_points
from pfedst.reporting.figures.saving import ReportFigure
from pfedst.reporting.figures.style import (
    PALE,
    RowStyle,
    new_figure,
    protocol_caption,
    round_text,
    row_styles,
    seeds_text,
    settle,
    shortened,
)
from pfedst.reporting.tables import bytes_text, metric_title, metric_words

UNITS = (("B", 1), ("KiB", 2**10), ("MiB", 2**20), ("GiB", 2**30), ("TiB", 2**40))


@dataclass(frozen=True)
class _Point:
    """A row: bytes, and the percentage of each seed."""

    label: str
    cost: float
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return fmean(self.values)


def cost(compared: Compared, metric: str) -> ReportFigure | None:
    """Draw two panels, bytes moved in the whole run and peak memory; None if no row has a value."""
    moved = _points(compared.rows, metric, {row.label: [run.total_bytes for run in row.runs] for row in compared.rows})
    memory = _points(compared.rows, metric, {row.label: _peaks(row) for row in compared.rows})
    panels = [
        (points, name) for points, name in ((moved, "bytes moved in the whole run"), (memory, "peak memory")) if points
    ]
    if not panels:
        return None
    split, seeds = compared.protocol["split"], compared.has_spread
    description = f"Personal model on {split}, mean over sites, {round_text(compared)}, {seeds_text(compared)}"
    description += "; mark: mean, line: least to most over runs" if seeds else ""
    figure = new_figure(compared, description, 2.7 + 0.06 * max(0, len(compared.rows) - 6), 3.6 * len(panels))
    grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    styles = row_styles(compared)
    for axes, (points, name) in zip(grid, panels, strict=True):
        _draw(axes, points, styles, name)
    grid[0].set_ylabel(f"{metric_words(metric)}, mean over sites, %")
    grid[0].margins(y=0.12)
    settle(figure)  # labels are placed after the layout of the panels is fixed
    for axes, (points, _) in zip(grid, panels, strict=True):
        label_points(axes, [_labelled(point, styles[point.label]) for point in points])
    caption = (
        f"{metric_title(metric)} of the personal model on {split}, mean over sites, {seeds_text(compared)}, "
        f"against bytes up and down over all sites, rounds and the setup, and against the peak memory of a process. "
        f"{protocol_caption(compared)}"
    )
    title = f"Cost: {metric_words(metric)} on {split} against bytes and memory"
    return ReportFigure("cost", title, _finding(compared, metric, panels), caption, figure)


def _finding(compared: Compared, metric: str, panels: Sequence[tuple[list[_Point], str]]) -> str:
    costs = " ".join(
        f"{name[:1].upper()}{name[1:]}: {extremes({point.label: point.cost for point in points}, bytes_text)}."
        for points, name in panels
    )
    return f"{metric_title(metric)}, mean over sites: {means_of_rows(compared, metric)}. {costs}"


def _peaks(row: RunsOfARow) -> list[float]:
    found = [run.cost["peak_memory_bytes"] for run in row.runs]
    return [peak for peak in found if peak is not None]


def _points(rows: tuple[RunsOfARow, ...], metric: str, costs: Mapping[str, list[float]]) -> list[_Point]:
    """Return points of the rows for which both numbers are known."""
    values = {row.label: tuple(100 * value for value in row.values("personal", OverSites.MEAN, metric)) for row in rows}
    return [
        _Point(row.label, fmean(costs[row.label]), values[row.label])
        for row in rows
        if values[row.label] and costs[row.label]
    ]


def _labelled(point: _Point, style: RowStyle) -> Labelled:
    return Labelled(shortened(point.label, 28), point.cost, point.mean, min(point.values), max(point.values), style)


def _draw(axes: Axes, points: list[_Point], styles: Mapping[str, RowStyle], name: str) -> None:
    for point in points:
        style = styles[point.label]
        if len(point.values) > 1:
            ends = [min(point.values), max(point.values)]
            axes.plot([point.cost] * 2, ends, color=style.color, linewidth=1.0, zorder=style.zorder - 1)
        axes.plot([point.cost], [point.mean], label=point.label, zorder=style.zorder + 1, **style.mark)
    costs = [point.cost for point in points]
    positive = [value for value in costs if value > 0]
    if positive and max(positive) > 10 * min(positive):
        _logarithmic(axes, costs)
        axes.set_xlabel(f"{name} (logarithmic)")
        return
    unit, factor = _unit(max(costs))
    low, high = min(costs), max(costs)
    room = 0.15 * (high - low) or max(0.15 * high, 1)
    axes.set_xlim(low - room, high + room)
    ticks = _round_ticks(low - room, high + room, factor)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / factor:g}"))
    axes.set_xlabel(f"{name}, {unit}")


def _unit(count: float) -> tuple[str, int]:
    return next((unit for unit in reversed(UNITS) if count >= unit[1]), UNITS[2])


def _round_ticks(low: float, high: float, factor: int) -> list[float]:
    """Return round numbers of the unit, none below 0."""
    found = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(max(0, low) / factor, high / factor)
    return [float(tick) * factor for tick in found if max(0, low) <= tick * factor <= high]


def _logarithmic(axes: Axes, costs: list[float]) -> None:
    """Set a logarithmic axis of bytes. If a row has zero bytes, 0 gets a separate place at the left."""
    positive = [value for value in costs if value > 0]
    low, high = math.log10(min(positive)), math.log10(max(positive))
    room = 0.17 * (high - low)
    ticks = _decades(10 ** (low - room), 10 ** (high + room))
    labels = {tick: _bytes_tick(tick) for tick in ticks}
    if 0 in costs:
        # linear up to just below the first positive value
        least = 10 ** (low - 0.5 * room)
        axes.set_xscale("symlog", linthresh=least, linscale=max(0.4, 0.2 * (high - low)))
        axes.axvspan(-least / 2, least / 2, color=PALE, alpha=0.5, linewidth=0, zorder=0, label="none")
        axes.set_xlim(-least / 2, 10 ** (high + room))
        labels = {0.0: "0"} | labels
    else:
        axes.set_xscale("log")
        axes.set_xlim(10 ** (low - room), 10 ** (high + room))
    axes.xaxis.set_major_locator(FixedLocator(list(labels)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: labels.get(value, "")))
    axes.xaxis.set_minor_locator(NullLocator())


def _decades(low: float, high: float) -> list[float]:
    """Return 1, 10 and 100 of each unit, thinned so that labels do not touch."""
    found = [float(step * factor) for _, factor in UNITS for step in (1, 10, 100) if low <= step * factor <= high]
    return found[:: max(1, math.ceil(len(found) / 5))]


def _bytes_tick(count: float) -> str:
    unit, factor = _unit(count)
    return f"{count / factor:g} {unit}"
