"""Write figures to files, with reproducible bytes."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import matplotlib
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from pfedst.reporting.figures.names import FONT
from pfedst.reporting.figures.style import DPI, figure_style
from pfedst.reporting.report import FigureFormat
from pfedst.state import write_atomically

PNG: dict[str, Any] = {"dpi": DPI, "metadata": {"Software": None}}
STYLE_OF_ALL = "*{"
"""Start of the style that matplotlib gives to all elements. In a page it would apply to the whole page."""
WITHOUT_IT = "Verdana, sans-serif"
"""Fonts for a browser that lacks the font of the figures; the letters of the first have the same width."""
PDF: dict[str, Any] = {"metadata": {"CreationDate": None, "Creator": None, "Producer": None}}


@dataclass(frozen=True)
class ReportFigure:
    """One figure.

    Attributes:
        name: name of its files and its anchor, such as `cost`.
        title: one line.
        finding: what the figure shows, with its numbers, for readers who do not see it.
        caption: sentences that describe the content and the protocol.
        figure: matplotlib figure, without a window or any state of pyplot.
    """

    name: str
    title: str
    finding: str
    caption: str
    figure: Figure


def save_figure(figure: ReportFigure, folder: Path, formats: Collection[FigureFormat]) -> list[Path]:
    """Write NAME.FORMAT for each of the formats, and for those of an earlier report in the folder: none gets stale.

    Raises:
        OSError: If the files cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for kind, options in (("png", PNG), ("pdf", PDF)):
        file = folder / f"{figure.name}.{kind}"
        if kind not in formats and not file.exists():
            continue
        content = BytesIO()
        with figure_style():
            # imports the writer of this format, which takes a third as long as the rest of matplotlib
            FigureCanvasBase(figure.figure).print_figure(content, format=kind, **options)
        write_atomically(file, content.getvalue())
        files.append(file)
    return files


def svg_text(figure: ReportFigure) -> str:
    """Return the `svg` element for an HTML page. Letters are text, which can be found, selected and copied."""
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
    text = text.replace(STYLE_OF_ALL, f"#{figure.name}-figure_1{{", 1)
    text = re.sub(rf"(?<=font-family: )'{FONT}'", f"'{FONT}', {WITHOUT_IT}", text)
    return text.replace("<svg", f'<svg role="img" aria-label={quoteattr(figure.finding)}', 1)
