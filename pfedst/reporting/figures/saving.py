"""Write figures to files, with reproducible bytes."""

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

from pfedst.reporting.figures.style import DPI, figure_style
from pfedst.state import write_atomically


@dataclass(frozen=True)
class ReportFigure:
    """One figure.

    Attributes:
        name: name of its files and its anchor, such as `cost`.
        title: one line.
        caption: sentences that describe the content and the protocol.
        figure: matplotlib figure, without a window or any state of pyplot.
    """

    name: str
    title: str
    caption: str
    figure: Figure


def save_figure(figure: ReportFigure, folder: Path) -> list[Path]:
    """Write NAME.png and NAME.pdf.

    Raises:
        OSError: If the files cannot be written.
    """
    png, pdf = BytesIO(), BytesIO()
    with figure_style():
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
    """Return the `svg` element for an HTML page. Letters are outlines, so it looks the same everywhere."""
    svg = BytesIO()
    with figure_style():
        # ids are made with a salt, which is random by default
        matplotlib.rcParams["svg.hashsalt"] = figure.name
        unsaid = {"Date": None, "Creator": None, "Format": None, "Type": None}
        FigureCanvasSVG(figure.figure).print_figure(svg, format="svg", metadata=unsaid)
    text = svg.getvalue().decode()
    text = text[text.index("<svg") :]  # without the XML declaration, which is not allowed within a page
    # ids must be unique in a page, which holds several figures
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{figure.name}-", text)
    head, rest = text.split(">", 1)
    return f'{head} role="img">\n <title>{escape(figure.title)}</title>{rest}'
