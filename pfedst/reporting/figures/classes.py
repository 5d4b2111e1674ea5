"""Sensitivity, specificity and average precision of each class at each site, with intervals over patients."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes

from pfedst.evaluation.averages import CLASS_METRICS
from pfedst.reporting.by_class import ClassAtSite, classes_at_sites, shown_run
from pfedst.reporting.comparison import Compared, FinishedRun
from pfedst.reporting.figures.findings import extremes
from pfedst.reporting.figures.saving import ReportFigure
from pfedst.reporting.figures.style import (
    GUIDE,
    RowStyle,
    new_figure,
    panel_title,
    protocol_caption,
    round_text,
    row_styles,
    shortened,
)
from pfedst.reporting.tables import metric_title

MOST_LINES = 72
"""Maximum number of classes at sites; of more, the sites with most images are shown."""
HEIGHT = 0.16
"""Of a line in inches."""


def classes(compared: Compared, metric: str) -> ReportFigure | None:
    """Draw a panel for each metric with one line a class at a site; None if the reference has no such numbers."""
    run = shown_run(compared)
    if run is None:
        return None
    sites = _largest(compared, run)
    lines: list[ClassAtSite | str] = []
    for site in sites:
        lines += [site, *classes_at_sites(run, compared.classes, [site])]
    split = compared.protocol["split"]
    description = (
        f"Personal model of {compared.reference} on {split}, {round_text(compared)}, {run.words}; in brackets: "
        f"images, patients or lesions; lines: 95 % intervals over these (over images where not known); grey mark: "
        f"share of the class, the average precision by chance; dash: not defined"
    )
    figure = new_figure(compared, description, 0.45 + HEIGHT * len(lines))
    grid = figure.subplots(1, len(CLASS_METRICS), sharey=True, squeeze=False)[0]
    style = row_styles(compared)[compared.reference]
    for axes, shown in zip(grid, CLASS_METRICS, strict=True):
        panel_title(axes, f"{metric_title(shown)}, %")
        _draw(axes, lines, shown, style)
        axes.yaxis.set_visible(axes is grid[0])
    _name_lines(grid[0], lines)
    left_out = len(compared.sites) - len(sites)
    caption = (
        f"Each class against the others at each site, personal model of {compared.reference} with {run.words} on "
        f"{split}: the numbers of the table, with images and units in brackets. "
        + (f"Shown are the {len(sites)} sites with most images, {left_out} are left out. " if left_out else "")
        + f"A mark without a line has no interval. {protocol_caption(compared)}"
    )
    title = f"Sensitivity, specificity and average precision on {split}"
    return ReportFigure("classes", title, _finding(lines), caption, figure)


def _finding(lines: Sequence[ClassAtSite | str]) -> str:
    found = [line for line in lines if not isinstance(line, str)]
    ends = {
        shown: extremes({f"{one.name} at {one.site}": one.estimates[shown].value for one in found})
        for shown in CLASS_METRICS
    }
    return " ".join(f"{metric_title(shown)}: {text}." for shown, text in ends.items())


def _largest(compared: Compared, run: FinishedRun) -> list[str]:
    """Return the sites that are drawn, in the order of a table."""
    reported = [site for site in compared.sites if site in run.class_metrics]
    most = max(1, MOST_LINES // (len(compared.classes) + 1))
    largest = sorted(reported, key=lambda site: -run.class_metrics[site]["images"])[:most]
    return [site for site in reported if site in largest]


def _draw(axes: Axes, lines: Sequence[ClassAtSite | str], metric: str, style: RowStyle) -> None:
    found = [(y, line, line.estimates[metric]) for y, line in enumerate(lines) if not isinstance(line, str)]
    ends = [(y, *estimate.interval) for y, _, estimate in found if estimate.interval]
    if ends:
        heights, lows, highs = zip(*ends, strict=True)
        axes.hlines(
            heights,
            [100 * x for x in lows],
            [100 * x for x in highs],
            color=style.color,
            linewidth=1.1,
            label="interval",
        )
    points = [(100 * estimate.value, y) for y, _, estimate in found if estimate.value is not None]
    if points:
        marks = style.mark | {"markersize": 4.5}
        axes.plot(*zip(*points, strict=True), clip_on=False, label="value", zorder=3, **marks)
    if metric == "average_precision" and points:
        shares = [(100 * line.share, y) for y, line, estimate in found if estimate.value is not None]
        axes.plot(*zip(*shares, strict=True), linestyle="none", marker="|", markersize=6, color=GUIDE, label="share")
    for y, _, estimate in found:
        if estimate.value is None:
            axes.text(2, y, "-", va="center", color=GUIDE)
    axes.set(xlim=(0, 100), ylim=(len(lines) - 0.4, -0.6), xticks=range(0, 101, 20))
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def _name_lines(axes: Axes, lines: Sequence[ClassAtSite | str]) -> None:
    names = [
        shortened(line, 30) if isinstance(line, str) else f"{shortened(line.name, 22)} ({line.images}, {line.units})"
        for line in lines
    ]
    axes.set_yticks(range(len(lines)), names)
    for label, line in zip(axes.get_yticklabels(), lines, strict=True):
        label.set_fontweight("bold" if isinstance(line, str) else "normal")
