"""Learning curves on validation."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from pfedst.evaluation import CALIBRATION
from pfedst.reporting.comparison import Compared, FinishedRun, OverSites, RunsOfARow, has_present_bins
from pfedst.reporting.figures.findings import extremes, percents
from pfedst.reporting.figures.saving import ReportFigure
from pfedst.reporting.figures.style import (
    WIDTH,
    RowStyle,
    new_figure,
    protocol_caption,
    row_styles,
    seeds_text,
    shortened,
    title_of_column,
)
from pfedst.reporting.tables import metric_title, metric_words

MOST_BANDS = 6
"""Maximum number of rows with a band. With more rows only the reference has one, since many bands hide each other."""
MOST_SPARE = 9
"""Maximum number of rows whose legend fits into the place of a panel."""
Panel = str | OverSites
"""A site, or the mean over sites."""
Points = dict[int, list[float]]
"""Round -> one value per seed."""


def learning_curves(compared: Compared, metric: str) -> ReportFigure | None:
    """Draw a panel for each site and one for their mean; None if no site has validation images."""
    found = {row.label: _points(row, metric) for row in compared.rows}
    panels: list[Panel] = [site for site in compared.sites if any(site in points for points in found.values())]
    if not panels:
        return None
    panels += [OverSites.MEAN] if len(compared.sites) > 1 else []
    figure = _empty(compared, metric, len(panels))
    last = max([1, *(number for points in found.values() for numbers in points.values() for number in numbers)])
    for axes, panel in zip(figure.axes, panels, strict=False):
        title_of_column(axes, panel, 30)
        _panel(axes, compared, {label: points.get(panel, {}) for label, points in found.items()}, last)
    caption = (
        f"{metric_title(metric)} of the personal model on each site's validation images, after the merge of a round, "
        f"{seeds_text(compared)}. A row that trains nothing is a horizontal line. {protocol_caption(compared)}"
    )
    means = {label: _means(points.get(panels[-1], {})) for label, points in found.items()}
    title = f"Learning curves: {metric_words(metric)} on validation"
    return ReportFigure("learning_curves", title, _finding(compared, metric, means), caption, figure)


def _means(points: Points) -> dict[int, float]:
    return {at: fmean(values) for at, values in sorted(points.items())}


def _finding(compared: Compared, metric: str, means: Mapping[str, Mapping[int, float]]) -> str:
    """Describe the mean over sites, or the only site: all rows at their last round, and the course of the reference."""
    last = extremes({label: [*found.values()][-1] if found else None for label, found in means.items()})
    sentences = [f"{metric_title(metric)} on validation, mean over sites, at the last round: {last}."]
    course = means[compared.reference]
    if len(course) > 1:
        (first, start), *_, (end, value) = course.items()
        best = (min if metric in CALIBRATION else max)(course, key=lambda at: course[at])
        sentences.append(
            f"{compared.reference}: {percents(start)} after round {first}, {percents(value)} after round {end}, best "
            f"after round {best} with {percents(course[best])}."
        )
    return " ".join(sentences)


def _empty(compared: Compared, metric: str, panels: int) -> Figure:
    """Create a grid of panels and the legend, which uses a free place of the grid if there is one."""
    columns = panels if panels < 4 else 2 if panels == 4 else 3
    lines = -(-panels // columns)
    styles = row_styles(compared)
    handles = [_handle(row.label, styles[row.label]) for row in compared.rows]
    spare = lines * columns > panels and len(handles) <= MOST_SPARE
    description = f"Personal model on validation, {seeds_text(compared)}"
    if compared.has_spread:
        description += ": mean; band: least and most over runs"
        description += "" if _bands(compared) else f", of {compared.reference} alone"
    height = 0.1 + lines * (2.3 if columns < 3 or lines == 1 else 1.65)
    names = ("round", f"{metric_words(metric)} on validation, %")
    width = 4.6 if panels == 1 else WIDTH
    figure = new_figure(compared, description, height, width, axes=names, legend=[] if spare else handles)
    grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    for axes in grid.flat[panels:]:
        axes.set_axis_off()
    for axes in grid.flat[max(0, panels - columns) : panels]:
        axes.tick_params(labelbottom=True)
    if spare:
        names_of = grid.flat[-1].legend(
            handles=[_handle(shortened(row.label, 24), styles[row.label]) for row in compared.rows],
            loc="center",
            frameon=False,
            handlelength=3,
            labelspacing=0.6,
        )
        for text, row in zip(names_of.get_texts(), compared.rows, strict=True):
            text.set_fontweight(styles[row.label].weight)
    return figure


def _bands(compared: Compared) -> bool:
    return len(compared.rows) <= MOST_BANDS


def _panel(axes: Axes, compared: Compared, found: Mapping[str, Points], last: int) -> None:
    styles = row_styles(compared)
    for number, (label, points) in enumerate(found.items()):
        if not points:
            continue
        rounds = sorted(points)
        means = [100 * fmean(points[at]) for at in rounds]
        ends = [(100 * min(points[at]), 100 * max(points[at])) for at in rounds]
        if len(rounds) == 1:  # it does not train
            rounds, means, ends = [0, last], means * 2, ends * 2
        style = styles[label]
        if compared.has_spread and (_bands(compared) or label == compared.reference):
            low, high = zip(*ends, strict=True)
            axes.fill_between(rounds, low, high, color=style.color, alpha=0.12, linewidth=0, zorder=style.zorder - 2)
        step = max(1, math.ceil(len(rounds) / 5))  # place the marks of different rows at different rounds
        marks = style.mark | {"markersize": style.size - 2, "markevery": (number % step, step), "clip_on": False}
        axes.plot(rounds, means, label=label, zorder=style.zorder, **(marks | style.stroke))
    axes.set_xlim(0, last)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=2))


def _points(row: RunsOfARow, metric: str) -> dict[Panel, Points]:
    """Return the points of each panel. Panels without points are skipped."""
    panels: dict[Panel, Points] = {}
    for run in row.runs:
        by_round = _by_round(run, metric)
        counted = {
            number: [value for site, value in sites.items() if site not in run.held_out]
            for number, sites in by_round.items()
        }
        most = max(map(len, counted.values()), default=0)
        for number, sites in by_round.items():
            values: dict[Panel, float] = dict(sites.items())
            if counted[number] and len(counted[number]) == most:  # a mean over fewer sites is no point of this curve
                values[OverSites.MEAN] = fmean(counted[number])
            for panel, value in values.items():
                panels.setdefault(panel, {}).setdefault(number, []).append(value)
    return panels


def _by_round(run: FinishedRun, metric: str) -> dict[int, dict[str, float]]:
    found: dict[int, dict[str, float]] = {}
    for number, site, value in _values(run, metric):
        found.setdefault(number, {})[site] = value
    return dict(sorted(found.items()))


def _values(run: FinishedRun, metric: str) -> Iterator[tuple[int, str, float]]:
    if metric in CALIBRATION and not has_present_bins(run.summary):
        return
    for record in run.records:
        # fine-tuning comes after the last round and is not a round
        if record.get("finetuned"):
            continue
        of_split = record.get("received", {}).get("validation", {})
        value = of_split.get("personal", {}).get(metric)
        if value is not None:
            yield record["round"], record["client"], value


def _handle(label: str, style: RowStyle) -> Line2D:
    return Line2D([], [], label=label, **(style.mark | {"markersize": style.size - 1} | style.stroke))
