"""Reliability diagrams: confidence against accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes

from pfedst.reporting.comparison import Compared, RunsOfARow
from pfedst.reporting.figures.confusion import MOST_PANELS
from pfedst.reporting.figures.findings import extremes, percents
from pfedst.reporting.figures.saving import ReportFigure
from pfedst.reporting.figures.style import (
    GUIDE,
    WARNING,
    WIDTH,
    RowStyle,
    best_rows,
    new_figure,
    panel_title,
    protocol_caption,
    round_text,
    row_styles,
    seeds_text,
    shortened,
)


@dataclass(frozen=True)
class Pooled:
    """A reliability diagram summed over sites and seeds."""

    images: tuple[int, ...]
    right: tuple[int, ...]
    confidence: tuple[float, ...]

    @property
    def points(self) -> list[tuple[float, float]]:
        """Mean confidence and accuracy in percent of each bin with images."""
        bins = zip(self.images, self.right, self.confidence, strict=True)
        return [(100 * total / images, 100 * right / images) for images, right, total in bins if images]

    @property
    def shares(self) -> list[float]:
        """Percentage of the images in each bin."""
        return [100 * images / max(1, sum(self.images)) for images in self.images]

    @property
    def ece(self) -> float | None:
        """Expected calibration error in percent; None without images."""
        gaps = (abs(right - total) for right, total in zip(self.right, self.confidence, strict=True))
        return 100 * sum(gaps) / sum(self.images) if sum(self.images) else None


def pooled(row: RunsOfARow) -> Pooled:
    """Sum the personal model's diagrams on test over all sites and seeds."""
    found: list[Mapping[str, Any]] = [counts["reliability"] for run in row.runs for counts in run.counted]
    images, right, confidence = (
        tuple(map(sum, zip(*(one[key] for one in found), strict=True))) for key in ("images", "right", "confidence")
    )
    return Pooled(images, right, confidence)


def reliability(compared: Compared, metric: str) -> ReportFigure:
    """Draw a panel for each row of the confusion figure."""
    rows = best_rows(compared, metric, MOST_PANELS)
    columns = min(3, len(rows)) if len(rows) != 4 else 2
    lines = -(-len(rows) // columns)
    split = compared.protocol["split"]
    description = (
        f"Personal model on {split}, {round_text(compared)}; images of all sites and of {seeds_text(compared)} pooled; "
        f"bars: gap to the diagonal; below: share of images"
    )
    width = max(3.4, min(WIDTH, 0.4 + 2.27 * columns))
    names = ("confidence, %", "accuracy, %, and images, %")
    figure = new_figure(compared, description, 0.1 + lines * 2.6, width, axes=names)
    grid = figure.subplots(2 * lines, columns, squeeze=False, height_ratios=[4, 1] * lines, sharex=True)
    styles = row_styles(compared)
    found = [pooled(row) for row in rows]
    most = max([1.0, *(share for one in found for share in one.shares)])
    for number in range(lines * columns):
        upper, lower = (grid[number // columns * 2 + below][number % columns] for below in (0, 1))
        if number >= len(rows):
            upper.remove()
            lower.remove()
            continue
        label, ece = rows[number].label, found[number].ece
        error = "no images" if ece is None else f"pooled ECE {ece:.1f} %"
        panel_title(upper, f"{shortened(label, 30)}\n{error}", label == compared.reference, pad=6)  # room for a mark
        _diagram(upper, found[number], styles[label])
        _histogram(lower, found[number], styles[label], most)
        for axes in (upper, lower):
            axes.tick_params(labelleft=number % columns == 0)
        lower.tick_params(labelbottom=number >= len(rows) - columns)
    caption = (
        f"Accuracy against mean confidence in {len(found[0].images)} bins, of the personal model on {split}, images of "
        f"all sites and of {seeds_text(compared)} pooled; the rows of the confusion figure. The ECE in a panel is that "
        f"of its pooled diagram, and not the mean over sites and seeds of a table. {protocol_caption(compared)}"
    )
    finding = _finding(compared, {row.label: one for row, one in zip(rows, found, strict=True)})
    return ReportFigure("reliability", f"Reliability on {split}", finding, caption, figure)


def _finding(compared: Compared, found: Mapping[str, Pooled]) -> str:
    errors = extremes({label: None if one.ece is None else one.ece / 100 for label, one in found.items()})
    of_reference = found[compared.reference]
    images = sum(of_reference.images)
    if not images:
        return f"Pooled calibration error (ECE): {errors}."
    confidence, accuracy = sum(of_reference.confidence) / images, sum(of_reference.right) / images
    return (
        f"Pooled calibration error (ECE): {errors}. {compared.reference} has a mean confidence of "
        f"{percents(confidence)} and an accuracy of {percents(accuracy)}."
    )


def _diagram(axes: Axes, found: Pooled, style: RowStyle) -> None:
    axes.plot([0, 100], [0, 100], color=GUIDE, linewidth=0.8, linestyle=(0, (4, 2)), label="diagonal", zorder=1)
    points = found.points
    for confidence, accuracy in points:
        axes.plot([confidence] * 2, [confidence, accuracy], color=WARNING, alpha=0.4, linewidth=3.5,
                  solid_capstyle="butt", label="gap", zorder=2)  # fmt: skip
    if points:
        marks = style.mark | {"markersize": style.size - 1.5}
        line = style.stroke | {"linestyle": "solid", "linewidth": 1.2}
        axes.plot(*zip(*points, strict=True), label="accuracy", zorder=4, clip_on=False, **(marks | line))
    axes.set(xlim=(0, 100), ylim=(0, 100), xticks=range(0, 101, 20), yticks=range(0, 101, 20))
    axes.tick_params(labelbottom=False)


def _histogram(axes: Axes, found: Pooled, style: RowStyle, most: float) -> None:
    wide = 100 / len(found.images)
    starts = [wide * number for number in range(len(found.images))]
    axes.bar(starts, found.shares, width=wide, align="edge", color=style.color, alpha=0.75, edgecolor="white",
             linewidth=0.4)  # fmt: skip
    axes.set(xlim=(0, 100), ylim=(0, most * 1.05))
    axes.grid(axis="x", visible=False)
    axes.locator_params(axis="y", nbins=2)
