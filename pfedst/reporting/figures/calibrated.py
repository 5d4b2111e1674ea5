"""Calibration of each site's model: reliability before and after its temperature, and risk against coverage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from pfedst.reporting.comparison import Compared
from pfedst.reporting.figures.findings import extremes, percents
from pfedst.reporting.figures.saving import ReportFigure
from pfedst.reporting.figures.style import (
    COLORS,
    GUIDE,
    WIDTH,
    new_figure,
    panel_title,
    protocol_caption,
    round_text,
    shortened,
)
from pfedst.reporting.temperature_table import calibrated_run

MOST_SITES = 12
"""Maximum number of panels; of more sites, those with most test images are drawn."""
COLUMNS = 4
MOMENTS = {"before": ("T = 1", COLORS[1], "o"), "after": ("fitted T", COLORS[0], "s")}
AREA = 70.0
"""Of the mark of a bin with all images, in square points."""


def calibrated_reliability(compared: Compared, metric: str) -> ReportFigure | None:
    """Draw a panel a site with the reliability before and after; None if the reference has no temperatures."""
    sites = _drawn(compared)
    if not sites:
        return None
    split = compared.protocol["split"]
    description = f"{_of_run(compared)}; a mark: a bin, its area the share of the images"
    legend = [
        Line2D([], [], color=color, marker=mark, markersize=4, label=label) for label, color, mark in MOMENTS.values()
    ]
    figure, panels = _panels(compared, description, len(sites), ("confidence, %", "accuracy, %"), legend)
    for axes, (site, found) in zip(panels, sites.items(), strict=True):
        panel_title(axes, f"{shortened(site, 22)}, T = {found['temperature']:.2f}")
        axes.plot([0, 100], [0, 100], color=GUIDE, linewidth=0.8, linestyle=(0, (4, 2)), label="diagonal", zorder=1)
        for moment, (label, color, marker) in MOMENTS.items():
            _bins(axes, found["test"][moment]["reliability"], label, color, marker)
        axes.set(xlim=(0, 100), ylim=(0, 100), xticks=range(0, 101, 25), yticks=range(0, 101, 25))
    caption = (
        f"Accuracy against mean confidence in bins on {split}, at each site, before and after its temperature: the run "
        f"of the table. {protocol_caption(compared)}"
    )
    title = f"Reliability before and after on {split}"
    return ReportFigure("calibrated_reliability", title, _errors(sites), caption, figure)


def risk_coverage(compared: Compared, metric: str) -> ReportFigure | None:
    """Draw a panel a site with risk against coverage; None if the reference has no temperatures."""
    sites = _drawn(compared)
    if not sites:
        return None
    split = compared.protocol["split"]
    description = f"{_of_run(compared)}; the most confident images first; cross: the threshold from validation"
    figure, panels = _panels(compared, description, len(sites), ("coverage, %", "wrong, %"))
    worst = max(risk for found in sites.values() for _, risk in [(0, 0.05), *found["test"]["risk_coverage"]])
    for axes, (site, found) in zip(panels, sites.items(), strict=True):
        panel_title(axes, shortened(site, 30))
        curve = [(100 * coverage, 100 * risk) for coverage, risk in found["test"]["risk_coverage"]]
        if curve:
            axes.plot(*zip(*curve, strict=True), color=COLORS[0], marker="o", markersize=2.5, linewidth=1.1,
                      label="risk", clip_on=False)  # fmt: skip
        given = found["test"]["selective"]
        if given and given["accuracy"] is not None:
            axes.plot([100 * given["coverage"]], [100 * (1 - given["accuracy"])], color=COLORS[5], marker="x",
                      linestyle="none", markersize=7, label="threshold", clip_on=False)  # fmt: skip
        axes.set(xlim=(0, 100), ylim=(0, 105 * worst), xticks=range(0, 101, 25))
    caption = (
        f"Share of wrong predictions among the images that are predicted, against their share of all images of a site, "
        f"on {split}. The threshold was set on validation. {protocol_caption(compared)}"
    )
    return ReportFigure("risk_coverage", f"Risk and coverage on {split}", _risks(sites), caption, figure)


def _errors(sites: Mapping[str, Mapping[str, Any]]) -> str:
    """Describe the calibration errors before and after the temperatures."""
    errors = {site: (found["test"]["before"]["ece"], found["test"]["after"]["ece"]) for site, found in sites.items()}
    lower = sum(after < before for before, after in errors.values())
    site, (before, after) = max(errors.items(), key=lambda item: abs(item[1][0] - item[1][1]))
    change = f" Largest change: {site}, from {percents(before)} to {percents(after)}." if before != after else ""
    ends = extremes({name: fitted for name, (_, fitted) in errors.items()})
    return (
        f"The calibration error (ECE) is lower with the fitted temperature at {lower} of {len(errors)} sites.{change} "
        f"ECE with the fitted temperature: {ends}."
    )


def _risks(sites: Mapping[str, Mapping[str, Any]]) -> str:
    """Describe the share of wrong predictions without and with the threshold."""
    curves = {site: found["test"]["risk_coverage"] for site, found in sites.items()}
    given = {site: found["test"]["selective"] or {} for site, found in sites.items()}
    wrong = {site: curve[-1][1] for site, curve in curves.items() if curve}
    kept = {site: 1 - one["accuracy"] for site, one in given.items() if one.get("accuracy") is not None}
    coverage = {site: one["coverage"] for site, one in given.items() if one.get("coverage") is not None}
    return (
        f"Wrong predictions among all images: {extremes(wrong)}. With the threshold: {extremes(kept)}. Coverage with "
        f"the threshold: {extremes(coverage)}."
    )


def _of_run(compared: Compared) -> str:
    run = compared.row(compared.reference).first
    return f"Personal model of {compared.reference} on {run.protocol['split']}, {round_text(compared)}, {run.words}"


def _drawn(compared: Compared) -> dict[str, Mapping[str, Any]]:
    """Return the calibration of the sites that are drawn, in the order of a table."""
    run = calibrated_run(compared)
    if run is None:
        return {}
    found = {s: run.calibration[s] for s in compared.sites if run.calibration.get(s, {}).get("test", {}).get("images")}
    largest = sorted(found, key=lambda site: -found[site]["test"]["images"])[:MOST_SITES]
    return {site: table for site, table in found.items() if site in largest}


def _panels(
    compared: Compared, description: str, number: int, names: tuple[str, str], legend: Sequence[Line2D] = ()
) -> tuple[Any, list[Axes]]:
    """Return a figure with so many panels, and their axes."""
    columns = min(COLUMNS, number)
    lines = -(-number // columns)
    figure = new_figure(
        compared, description, 0.3 + 1.9 * lines, max(3.4, WIDTH * columns / COLUMNS), axes=names, legend=legend
    )
    grid = [axes for line in figure.subplots(lines, columns, squeeze=False, sharey=True) for axes in line]
    for axes in grid[number:]:
        axes.remove()
    return figure, grid[:number]


def _bins(axes: Axes, reliability: Mapping[str, Any], label: str, color: str, marker: str) -> None:
    """Draw mean confidence and accuracy in percent of each bin with images."""
    bins = [
        found
        for found in zip(*(reliability[key] for key in ("images", "right", "confidence")), strict=True)
        if found[0]
    ]
    total = sum(images for images, _, _ in bins)
    x, y = ([100 * found[column] / found[0] for found in bins] for column in (2, 1))
    axes.plot(x, y, color=color, linewidth=0.9, label=label, zorder=2)
    areas = [6 + AREA * images / total for images, _, _ in bins]
    axes.scatter(x, y, s=areas, color=color, marker=marker, clip_on=False, zorder=3)
