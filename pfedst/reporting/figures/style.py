"""Common parts of all figures: the style of each row, and the protocol and warnings at the bottom."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from statistics import fmean
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.path import Path
from matplotlib.textpath import TextPath

from pfedst.evaluation import CALIBRATION
from pfedst.reporting.comparison import Compared, OverSites, RunsOfARow
from pfedst.reporting.figures.names import FONT

DPI = 150
WIDTH = 7.2
"""Width of every figure in inches: two columns of a paper, so that text has its printed size."""
TEXT, SMALL = 7.5, 7.0
"""Font sizes in points."""
LINE = 0.145
"""Line spacing in inches."""
WARNING = "#B22200"
GUIDE, PALE = "#808080", "#D9D9D9"
COLORS = ("#0072B2", "#BF8000", "#009E73", "#CC79A7", "#3A97D4", "#D55E00")
"""Colours of Okabe and Ito without black, which is used for the reference, and yellow, which is invisible on white.

Orange and sky blue are darker than theirs, so that a line in any of them has a contrast of 3 : 1 on white (WCAG).
"""
MARKERS = ("s", "^", "D", "v", "P", "X", "<", "*", ">", "p", "d", "h")
LINES: tuple[Any, ...] = ((0, (5, 1.5)), (0, (1, 1)), "solid", (0, (5, 1, 1, 1)), (0, (9, 2)))
RC: dict[Any, Any] = {
    "font.size": TEXT,
    "text.hinting": "none",  # letters have the same width at every resolution
    "figure.dpi": DPI,
    "axes.titlesize": TEXT,
    "axes.labelsize": TEXT,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "legend.fontsize": TEXT,
    "axes.linewidth": 0.6,
    "axes.edgecolor": "#404040",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "text.parse_math": False,  # a dollar in a name is no formula
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
}


@contextmanager
def figure_style(fonts: Sequence[str] = (FONT,)) -> Iterator[None]:
    """Run a block with these matplotlib settings, whatever the settings of the user.

    Args:
        fonts: a letter is drawn in the first font that has it.
    """
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(RC | {"font.family": list(fonts)})
        yield


@dataclass(frozen=True)
class RowStyle:
    """The style of a row in every figure."""

    color: str
    marker: str
    face: str
    line: Any
    width: float
    size: float
    zorder: float
    weight: str

    @property
    def mark(self) -> dict[str, Any]:
        """Arguments of `plot` for a mark without a line. Its dark edge separates it in greyscale."""
        filled = self.face == self.color
        return {
            "linestyle": "none",
            "marker": self.marker,
            "markersize": self.size,
            "markerfacecolor": self.face,
            "markeredgecolor": "#202020" if filled else self.color,
            "markeredgewidth": 0.5 if filled else 1.3,
        }

    @property
    def stroke(self) -> dict[str, Any]:
        """Arguments of `plot` for a line."""
        return {"color": self.color, "linestyle": self.line, "linewidth": self.width}


def row_styles(compared: Compared) -> dict[str, RowStyle]:
    """Return the style of each row by its label."""
    return styles_of([row.label for row in compared.rows], compared.reference)


def styles_of(labels: Sequence[str], reference: str) -> dict[str, RowStyle]:
    """Return styles by label: the reference is black and thick; of 24 others no two share colour and mark."""
    styles = {reference: RowStyle("#000000", "o", "#000000", "solid", 2.2, 6.5, 5.0, "bold")}
    others = [label for label in labels if label != reference]
    for number, label in enumerate(others):
        color, marker = COLORS[number % len(COLORS)], MARKERS[number % len(MARKERS)]
        face = "#FFFFFF" if number // len(MARKERS) % 2 else color
        size = 7.5 if marker in "*PX" else 5.5
        styles[label] = RowStyle(color, marker, face, LINES[number % len(LINES)], 1.1, size, 3.0, "normal")
    return styles


def mean_over_seeds(row: RunsOfARow, column: str | OverSites, metric: str) -> float | None:
    """Return the mean over seeds of the personal model on test."""
    values = row.values("personal", column, metric)
    return fmean(values) if values else None


def best_rows(compared: Compared, metric: str, most: int) -> list[RunsOfARow]:
    """Return the reference and the best of the others by the metric's mean over sites and seeds, in their order."""

    def place(row: RunsOfARow) -> tuple[bool, bool, float]:
        mean = mean_over_seeds(row, OverSites.MEAN, metric)
        better = 0.0 if mean is None else mean if metric in CALIBRATION else -mean
        return row.label != compared.reference, mean is None, better

    best = {row.label for row in sorted(compared.rows, key=place)[:most]}
    return [row for row in compared.rows if row.label in best]


def seeds_text(compared: Compared) -> str:
    """Describe the seeds, such as `seeds 0, 1, 2`."""
    seeds = compared.seeds
    if compared.folds is not None:
        return compared.runs_text
    if len(seeds) == 1:
        return f"one seed ({seeds[0]})"
    if len(seeds) > 3 and seeds == list(range(seeds[0], seeds[-1] + 1)):
        return f"{len(seeds)} seeds ({seeds[0]} to {seeds[-1]})"
    return f"{len(seeds)} seeds ({', '.join(map(str, seeds))})"


def round_text(compared: Compared) -> str:
    """Describe when the models were evaluated."""
    if compared.of_best_rounds:
        return compared.round_words
    last = compared.protocol["round"]
    return f"after round {last}" if last else "without training"


def warnings_text(compared: Compared) -> str:
    """Return the warning for every figure, or an empty text if weights and images are real."""
    warnings = []
    for words, found in (
        ("RANDOM WEIGHTS", [row.has_random_weights for row in compared.rows]),
        ("SYNTHETIC IMAGES", [row.has_synthetic_images for row in compared.rows]),
    ):
        if any(found):
            warnings.append(words if all(found) else f"{words} in some rows")
    return f"{', '.join(warnings)}: a demonstration, no result" if warnings else ""


def protocol_caption(compared: Compared) -> str:
    """Return the sentences that end every caption."""
    sentences = [f"Numbers are {compared.protocol['when']}."]
    pooled = [row.label for row in compared.rows if row.pooled]
    if pooled:
        sentences.append(f"{', '.join(pooled)} pools the images of all sites, which no federation can.")
    warning = warnings_text(compared)
    return " ".join([*sentences, f"{warning}."] if warning else sentences)


def text_inches(text: str, size: float, weight: str = "normal") -> float:
    """Return the width of a text in inches, in the fonts of the style."""
    return _text_inches(text, size, weight, tuple(matplotlib.rcParams["font.family"]))


@cache
def _text_inches(text: str, size: float, weight: str, fonts: tuple[str, ...]) -> float:
    if not text.strip():
        return 0.0
    path = TextPath((0, 0), text, size=size, prop=FontProperties(family=list(fonts), weight=weight))
    # control points, of which some lie a hair outside a letter: exact ends of curves take a tenth of a report's time
    across = path.vertices[path.codes != Path.CLOSEPOLY, 0]
    return float(across.max() - across.min()) / 72


def shortened(name: str, most: int) -> str:
    """Return a name, shortened to at most `most` letters."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


def fitting(name: str, rest: str, inches: float, weight: str) -> str:
    """Return a name, shortened so that it and the rest of a title have at most this width."""
    letters = (n for n in range(len(name), 1, -1) if text_inches(shortened(name, n) + rest, TEXT, weight) <= inches)
    return shortened(name, next(letters, 2)) + rest


def new_figure(
    compared: Compared,
    description: str,
    height: float,
    panels: float = WIDTH,
    *,
    axes: tuple[str, str] = ("", ""),
    legend: Sequence[Line2D] = (),
) -> Figure:
    """Create an empty figure with the axis names, the legend, the protocol and the warnings below its panels.

    All figures are as wide as a page, so that letters have one size in all of them; narrower panels are centred.

    Args:
        compared: the compared runs.
        description: content of the figure, with split and model.
        height: height of the panels alone, in inches.
        panels: width of the panels in inches, at most `WIDTH`.
        axes: names of x and y for all panels together.
        legend: one handle per row.
    """
    lines = _foot_lines(compared, description)
    columns = _columns(legend)
    foot = LINE * len(lines) + 0.07
    below_name = foot + (LINE * 1.08 * -(-len(legend) // columns) + 0.06 if legend else 0)
    strip = below_name + (LINE + 0.02 if axes[0] else 0)
    figure = Figure(figsize=(WIDTH, total := height + strip), layout="constrained")
    engine: Any = figure.get_layout_engine()
    left = (WIDTH - panels) / 2 / WIDTH
    engine.set(
        rect=(left, strip / total, 1 - 2 * left, 1 - strip / total), w_pad=0.04, h_pad=0.045, wspace=0.02, hspace=0.02
    )
    for number, (line, color, weight) in enumerate(reversed(lines)):
        y = (0.03 + LINE * number) / total
        figure.text(0.06 / WIDTH, y, line, fontsize=SMALL, color=color, weight=weight, va="bottom").set_in_layout(False)
    # matplotlib's supxlabel ignores the strip
    if axes[0]:
        middle = {"fontsize": TEXT, "ha": "center", "va": "bottom", "in_layout": False}
        figure.text(0.5, (below_name + 0.02) / total, axes[0], middle)
    if axes[1]:
        figure.supylabel(axes[1], fontsize=TEXT, y=(strip + height / 2) / total)
    if legend:
        place_legend(figure, legend, columns, foot / total)
    return figure


def settle(figure: Figure) -> None:
    """Compute the final layout, so that saving the figure again or in another format moves nothing."""
    engine = figure.get_layout_engine()
    if engine is None:
        return
    fixed = any(axes.get_aspect() != "auto" for axes in figure.axes)
    for _ in range(1 + fixed):  # the second pass knows the positions of axes with a fixed aspect
        engine.execute(figure)
    left: float = engine.get()["rect"][0]  # of the constrained layout
    for text in figure.texts:
        if text.get_rotation() == 90:  # matplotlib places the name of y at the edge, also of panels that are centred
            text.set_x(text.get_position()[0] + left)
    figure.set_layout_engine(None)  # not "none", with which every save would lay out the figure once more


def _foot_lines(compared: Compared, description: str) -> list[tuple[str, str, str]]:
    """Return text, colour and weight of each line at the bottom."""
    letters = int((WIDTH - 0.12) / text_inches("n" * 100, SMALL) * 106)  # an average letter is narrower than an n
    lines = [(line, "#505050", "normal") for line in textwrap.wrap(description, letters)]
    bold = int(letters * 0.8)
    return lines + [(line, WARNING, "bold") for line in textwrap.wrap(warnings_text(compared), bold)]


def _columns(handles: Sequence[Line2D]) -> int:
    widest = max((text_inches(str(handle.get_label()), TEXT, "bold") for handle in handles), default=0)
    return max(1, min(len(handles), int((WIDTH - 0.1) / (widest + 0.52))))


def place_legend(figure: Figure, handles: Sequence[Line2D], columns: int, y: float) -> Legend:
    """Place a legend centred above the lines at the bottom of a figure, outside the layout of the panels."""
    legend = figure.legend(
        handles=list(handles),
        loc="lower center",
        bbox_to_anchor=(0.5, y),
        ncols=columns,
        frameon=False,
        handlelength=2.6,
        handletextpad=0.5,
        columnspacing=1.2,
        labelspacing=0.35,
        borderpad=0,
        borderaxespad=0.1,
    )
    legend.set_in_layout(False)
    for text, handle in zip(legend.get_texts(), handles, strict=True):
        text.set_fontweight("bold" if handle.get_linewidth() > 2 else "normal")
    return legend


def panel_title(axes: Axes, text: str, bold: bool = False, pad: float = 3) -> None:
    """Write a title above a panel, at its left."""
    # y: without it matplotlib measures all ticks, in every layout and drawing, to find out that none is above the panel
    axes.set_title(text, loc="left", pad=pad, y=1.0, weight="bold" if bold else "normal")


def title_of_column(axes: Axes, column: str | OverSites, letters: int) -> None:
    """Write the name of a site above its panel, in at most so many letters, or that it shows the mean over sites."""
    over_sites = isinstance(column, OverSites)
    panel_title(axes, "mean over sites" if over_sites else shortened(str(column), letters), over_sites)
