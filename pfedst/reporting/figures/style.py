"""What all figures have in common: how a row looks, and the protocol and warnings at the bottom of each."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.layout_engine import PlaceHolderLayoutEngine
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.textpath import TextPath

from pfedst.evaluation import CALIBRATION
from pfedst.reporting.comparison import Compared, RunsOfARow

DPI = 150
WIDTH = 7.2
"""Inches: two columns of a paper, so that text has its size in print."""
TEXT, SMALL = 7.5, 7.0
"""Points."""
LINE = 0.145
"""Inches from a line of text to the next."""
WARNING = "#B22200"
GUIDE, PALE = "#808080", "#D9D9D9"
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
"""Okabe and Ito's, without black, which is the reference's, and yellow, which nobody sees on white."""
MARKERS = ("s", "^", "D", "v", "P", "X", "<", "*", ">", "p", "d", "h")
LINES: tuple[Any, ...] = ((0, (5, 1.5)), (0, (1, 1)), "solid", (0, (5, 1, 1, 1)), (0, (9, 2)))
RC: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": TEXT,
    "text.hinting": "none",  # letters are as wide at every resolution
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
    "text.parse_math": False,  # a name with a dollar is a name
    "pdf.fonttype": 42,
    "svg.fonttype": "path",
}


@contextmanager
def house_style() -> Iterator[None]:
    """Within it matplotlib has these settings, whatever the user's are."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(RC)
        yield


@dataclass(frozen=True)
class RowStyle:
    """How a row looks in every figure."""

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
        """For `plot`: a mark without a line; its rim is dark, so that it stays apart in grey."""
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
        """For `plot`: a line."""
        return {"color": self.color, "linestyle": self.line, "linewidth": self.width}


def row_styles(compared: Compared) -> dict[str, RowStyle]:
    """By label: the reference black and thick; of 24 others no two have the same colour and mark."""
    styles = {compared.reference: RowStyle("#000000", "o", "#000000", "solid", 2.2, 6.5, 5.0, "bold")}
    others = [row.label for row in compared.rows if row.label != compared.reference]
    for number, label in enumerate(others):
        color, marker = COLORS[number % len(COLORS)], MARKERS[number % len(MARKERS)]
        face = "#FFFFFF" if number // len(MARKERS) % 2 else color
        size = 7.5 if marker in "*PX" else 5.5
        styles[label] = RowStyle(color, marker, face, LINES[number % len(LINES)], 1.1, size, 3.0, "normal")
    return styles


def mean_over_seeds(row: RunsOfARow, column: str, metric: str) -> float | None:
    """Of the personal model on test."""
    values = row.values("personal", column, metric)
    return fmean(values) if values else None


def best_rows(compared: Compared, metric: str, most: int) -> list[RunsOfARow]:
    """The reference, then the best of the others by the metric's mean over sites and seeds."""

    def place(row: RunsOfARow) -> tuple[bool, bool, float]:
        mean = mean_over_seeds(row, "mean", metric)
        better = 0.0 if mean is None else mean if metric in CALIBRATION else -mean
        return row.label != compared.reference, mean is None, better

    return sorted(compared.rows, key=place)[:most]


def seeds_text(compared: Compared) -> str:
    """Such as `seeds 0, 1, 2`."""
    seeds = compared.seeds
    if len(seeds) == 1:
        return f"one seed ({seeds[0]})"
    if len(seeds) > 3 and seeds == list(range(seeds[0], seeds[-1] + 1)):
        return f"{len(seeds)} seeds ({seeds[0]} to {seeds[-1]})"
    return f"{len(seeds)} seeds ({', '.join(map(str, seeds))})"


def round_text(compared: Compared) -> str:
    """When the models were evaluated."""
    last = compared.protocol["round"]
    return f"after round {last}" if last else "without training"


def warnings_text(compared: Compared) -> str:
    """What every picture must say; empty where weights and images are real."""
    told = []
    for words, found in (
        ("RANDOM WEIGHTS", [row.has_random_weights for row in compared.rows]),
        ("SYNTHETIC IMAGES", [row.has_synthetic_images for row in compared.rows]),
    ):
        if any(found):
            told.append(words if all(found) else f"{words} in some rows")
    return f"{', '.join(told)}: a demonstration, no result" if told else ""


def protocol_caption(compared: Compared) -> str:
    """Sentences that end every caption."""
    told = [f"Numbers are {compared.protocol['when']}."]
    pooled = [row.label for row in compared.rows if row.pooled]
    if pooled:
        told.append(f"{', '.join(pooled)} pools the images of all sites, which no federation can.")
    warning = warnings_text(compared)
    return " ".join([*told, f"{warning}."] if warning else told)


def text_inches(text: str, size: float, weight: str = "normal") -> float:
    """How wide a text is."""
    if not text.strip():
        return 0.0
    path = TextPath((0, 0), text, size=size, prop=FontProperties(family="DejaVu Sans", weight=weight))
    return float(path.get_extents().width) / 72


def shortened(name: str, most: int) -> str:
    """A name that fits."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


def new_figure(
    compared: Compared,
    told: str,
    height: float,
    width: float = WIDTH,
    *,
    axes: tuple[str, str] = ("", ""),
    legend: Sequence[Line2D] = (),
) -> Figure:
    """An empty figure; below the place of its panels stand their name, the legend, the protocol and the warnings.

    Args:
        compared: of which it is.
        told: what is drawn, with split and model.
        height: of the panels alone, in inches.
        width: in inches.
        axes: names of x and y for all panels together.
        legend: a handle a row.
    """
    lines = _foot_lines(compared, told, width)
    columns = _columns(legend, width)
    foot = LINE * len(lines) + 0.07
    below_name = foot + (LINE * 1.08 * -(-len(legend) // columns) + 0.06 if legend else 0)
    strip = below_name + (LINE + 0.02 if axes[0] else 0)
    figure = Figure(figsize=(width, total := height + strip), layout="constrained")
    engine: Any = figure.get_layout_engine()
    engine.set(rect=(0, strip / total, 1, 1 - strip / total), w_pad=0.04, h_pad=0.045, wspace=0.02, hspace=0.02)
    for number, (line, color, weight) in enumerate(reversed(lines)):
        y = (0.03 + LINE * number) / total
        figure.text(0.06 / width, y, line, fontsize=SMALL, color=color, weight=weight, va="bottom").set_in_layout(False)
    # matplotlib's own name of all x axes takes no notice of the strip
    if axes[0]:
        middle = {"fontsize": TEXT, "ha": "center", "va": "bottom", "in_layout": False}
        figure.text(0.5, (below_name + 0.02) / total, axes[0], middle)
    if axes[1]:
        figure.supylabel(axes[1], fontsize=TEXT, y=(strip + height / 2) / total)
    if legend:
        place_legend(figure, legend, columns, foot / total)
    return figure


def settle(figure: Figure) -> None:
    """Compute the layout for good: to save it again, or in another format, must not move anything."""
    engine = figure.get_layout_engine()
    if engine is None or isinstance(engine, PlaceHolderLayoutEngine):
        return
    for _ in range(2):  # the second time knows where axes of a given aspect are
        engine.execute(figure)
    figure.set_layout_engine("none")


def _foot_lines(compared: Compared, told: str, width: float) -> list[tuple[str, str, str]]:
    """Text, colour and weight."""
    letters = int((width - 0.12) / text_inches("n" * 100, SMALL) * 106)  # an average letter is narrower than an n
    lines = [(line, "#505050", "normal") for line in textwrap.wrap(told, letters)]
    bold = int(letters * 0.8)
    return lines + [(line, WARNING, "bold") for line in textwrap.wrap(warnings_text(compared), bold)]


def _columns(handles: Sequence[Line2D], width: float) -> int:
    widest = max((text_inches(str(handle.get_label()), TEXT, "bold") for handle in handles), default=0)
    return max(1, min(len(handles), int((width - 0.1) / (widest + 0.52))))


def place_legend(figure: Figure, handles: Sequence[Line2D], columns: int, y: float) -> Legend:
    """Centred above the foot of a figure; the layout of the panels knows nothing of it."""
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
    """Above a panel, at its left."""
    axes.set_title(text, loc="left", pad=pad, weight="bold" if bold else "normal")
