"""Figures as files: whole, and the same bytes every time."""

from __future__ import annotations

import re
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from xml.sax.saxutils import escape

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from pfedst.reporting.figures.style import DPI, house_style
from pfedst.state import write_atomically


@dataclass(frozen=True)
class ReportFigure:
    """One figure.

    Attributes:
        name: of its files and its anchor, such as `cost`.
        title: a line.
        caption: what is drawn, and the protocol; sentences.
        figure: of matplotlib, without a window or any state of pyplot.
    """

    name: str
    title: str
    caption: str
    figure: Figure


def save_figure(figure: ReportFigure, folder: Path) -> list[Path]:
    """Write NAME.png and NAME.pdf.

    Raises:
        OSError: the disk refuses.
    """
    png, pdf = BytesIO(), BytesIO()
    with house_style():
        FigureCanvasAgg(figure.figure).print_figure(png, format="png", dpi=DPI, metadata={"Software": None})
        unsaid = {"CreationDate": None, "Creator": None, "Producer": None}
        FigureCanvasPdf(figure.figure).print_figure(pdf, format="pdf", metadata=unsaid)
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for kind, content in (("png", png), ("pdf", pdf)):
        files.append(folder / f"{figure.name}.{kind}")
        write_atomically(files[-1], content.getvalue())
    return files


def svg_text(figure: ReportFigure) -> str:
    """The `svg` element for an HTML page; letters are outlines, so that it looks the same everywhere."""
    svg = BytesIO()
    with house_style():
        # ids are made of a salt, which is random unless it is given
        matplotlib.rcParams["svg.hashsalt"] = figure.name
        unsaid = {"Date": None, "Creator": None, "Format": None, "Type": None}
        FigureCanvasSVG(figure.figure).print_figure(svg, format="svg", metadata=unsaid)
    text = svg.getvalue().decode()
    text = text[text.index("<svg") :]  # a page has no place for the XML declaration
    # an id is unique in a page, and several figures are in one
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{figure.name}-", text)
    head, rest = text.split(">", 1)
    return f'{head} role="img">\n <title>{escape(figure.title)}</title>{rest}'
