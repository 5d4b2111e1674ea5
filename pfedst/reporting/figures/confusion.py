"""Confusion matrices."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes

from pfedst.reporting.comparison import Compared, OverSites, RunsOfARow, summed
from pfedst.reporting.figures.findings import extremes, percents
from pfedst.reporting.figures.saving import ReportFigure
from pfedst.reporting.figures.style import (
    SMALL,
    WIDTH,
    best_rows,
    fitting,
    mean_over_seeds,
    new_figure,
    panel_title,
    protocol_caption,
    round_text,
    seeds_text,
    shortened,
    text_inches,
)
from pfedst.reporting.report_table import percent
from pfedst.reporting.tables import metric_words

MOST_PANELS = 6
CELL = 0.215
"""Minimum width in inches of a cell with `100` in the smallest letters."""
LETTERS = 14
"""Maximum number of letters of a class name."""


def confusion(compared: Compared, metric: str) -> ReportFigure:
    """Draw a panel for the reference and for the best of the other rows."""
    rows = best_rows(compared, metric, MOST_PANELS)
    names = [shortened(name, LETTERS) for name in compared.classes]
    of_names = max(text_inches(name, SMALL) for name in names) + 0.3
    columns = max(1, min(3, len(rows), int((WIDTH - of_names) / (CELL * len(names) + 0.2))))
    lines = -(-len(rows) // columns)
    side = min((WIDTH - of_names) / columns - 0.15, max(1.3, 0.32 * len(names)))
    description = (
        f"Personal model on {compared.protocol['split']}, {round_text(compared)}; images of all sites and of "
        f"{seeds_text(compared)} summed; % of a class, a row of cells"
    )
    width = min(WIDTH, max(of_names + columns * (side + 0.15), 3.4))
    height = lines * (side + 0.24) + of_names * 0.72
    figure = new_figure(compared, description, height, width, axes=("predicted", "target"))
    grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    for number, (axes, row) in enumerate(zip(grid.flat, rows, strict=False)):
        # the names of both axes take some of the width
        mean, bold = percent(mean_over_seeds(row, OverSites.MEAN, metric)), row.label == compared.reference
        panel_title(axes, fitting(row.label, f": {mean} %", side - 0.15, "bold" if bold else "normal"), bold)
        _draw(axes, shares(row), names, numbers=side / len(names) >= CELL * 0.97)
        axes.xaxis.set_visible(number >= len(rows) - columns)
        axes.yaxis.set_visible(number % columns == 0)
    for axes in grid.flat[len(rows) :]:
        axes.remove()
    caption = (
        f"Images of a class (a row of cells, 100 %) by what the personal model took them for, on "
        f"{compared.protocol['split']}, summed over sites and {seeds_text(compared)}. {_shown(compared, rows)}"
        f"Above each panel: {metric_words(metric)}, mean over sites and seeds. {protocol_caption(compared)}"
    )
    title = f"Confusion on {compared.protocol['split']}"
    return ReportFigure("confusion", title, _finding(compared), caption, figure)


def _finding(compared: Compared) -> str:
    found = shares(compared.row(compared.reference))
    known = [(number, [(value or 0) / 100 for value in line]) for number, line in enumerate(found) if None not in line]
    right = extremes({compared.classes[number]: line[number] for number, line in known})
    wrong = [(line[to], compared.classes[number], compared.classes[to])
             for number, line in known for to in range(len(line)) if to != number]  # fmt: skip
    share, of, to = max(wrong, default=(0.0, "", ""))
    error = f" Most frequent error: {percents(share)} of {of} predicted as {to}." if share else ""
    return f"Share of a class that {compared.reference} predicts right: {right}.{error}"


def _shown(compared: Compared, rows: Sequence[RunsOfARow]) -> str:
    if len(rows) == len(compared.rows):
        return ""
    return f"Shown are {compared.reference} and the {len(rows) - 1} best of the other rows. "


def shares(row: RunsOfARow) -> list[list[float | None]]:
    """Return the percentages of a class's images by prediction, over all sites and seeds.

    They are None for a class without images.
    """
    totals = summed(run.confusion for run in row.runs)
    return [[100 * count / sum(line) if sum(line) else None for count in line] for line in totals]


def _draw(axes: Axes, found: list[list[float | None]], names: list[str], numbers: bool) -> None:
    filled = [[float("nan") if value is None else value for value in line] for line in found]
    axes.imshow(filled, cmap="Blues", vmin=0, vmax=115)  # without the darkest blue, so that numbers are readable
    axes.grid(visible=False)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(length=0, pad=2)
    for spine in axes.spines.values():
        spine.set_visible(True)
    if not numbers:
        return
    for target, line in enumerate(found):
        for column, value in enumerate(line):
            text = "-" if value is None else f"{value:.0f}"
            color = "white" if (value or 0) > 60 else "black" if value is None or value >= 0.5 else "#707070"
            axes.text(
                column, target, text, ha="center", va="center", fontsize=SMALL, color=color,
                weight="bold" if target == column else "normal", in_layout=False,
            )  # fmt: skip
