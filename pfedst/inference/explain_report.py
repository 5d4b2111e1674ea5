"""Write the maps of images as figures, and their summary as Markdown and JSON."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.figure import Figure

from pfedst.errors import StateError
from pfedst.inference.explain import Against, ExplainedImage, MapSummary, summarise
from pfedst.inference.occlusion import Grid
from pfedst.inference.site_model import SiteModel
from pfedst.reporting.figures.saving import PNG
from pfedst.reporting.figures.style import SMALL, figure_style
from pfedst.state import json_bytes, write_atomically
from pfedst.version import __version__

PANEL = 2.4
"""Side of an image in a figure, inches."""
LETTERS = 60
COLORS = "PuOr_r"
"""Two colours that also differ for readers who do not see red and green, with white for no change."""
FEWEST_IMAGES = 20
"""Number of images from which on a verdict on the maps of a model is given without a warning."""
ORDERS = {"random": "a random order", "centre": "a Gaussian at the centre"}


def write_explanations(
    folder: Path, models: Sequence[SiteModel], explained: Sequence[ExplainedImage], grid: Grid
) -> list[Path]:
    """Write a figure for each image, `README.md` and `explain.json`.

    Raises:
        StateError: If the disk refuses a file.
    """
    summaries = summarise(explained)
    files = {_file_name(number, image): image for number, image in enumerate(explained, 1)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, image in files.items():
            write_atomically(folder / name, figure_bytes(image, grid))
        write_atomically(folder / "explain.json", json_bytes(_content(models, explained, summaries, grid)))
        write_atomically(folder / "README.md", summary_text(models, files, summaries, grid).encode())
    except OSError as error:
        raise StateError(f"{error.filename or folder} cannot be written ({error.strerror or error})") from error
    return [folder / name for name in (*files, "explain.json", "README.md")]


def _file_name(number: int, image: ExplainedImage) -> str:
    stem = re.sub(r"[^A-Za-z0-9_.-]+", "_", Path(image.name).stem)[:40]
    return f"{number:04d}-{stem}.png"


# -- figures -----------------------------------------------------------------------------------------------------------


def figure_bytes(image: ExplainedImage, grid: Grid) -> bytes:
    """Return the PNG of an image with its grid, and beside it the map of each model on one scale of colours."""
    largest = max(float(np.abs(single.cells).max()) for single in image.maps) or 1.0
    with figure_style():
        panels = 1 + len(image.maps)
        figure = Figure(figsize=(PANEL * panels + 0.9, PANEL + 0.95), layout="constrained")
        axes: Sequence[Axes] = figure.subplots(1, panels)
        axes[0].imshow(image.pixels, interpolation="nearest")
        axes[0].set_title("input of the encoder")
        for panel, single in zip(axes[1:], image.maps, strict=True):
            drawn = panel.imshow(
                single.cells,
                cmap=COLORS,
                vmin=-largest,
                vmax=largest,
                interpolation="nearest",
                extent=(-0.5, grid.side - 0.5, grid.side - 0.5, -0.5),
            )
            panel.set_title(
                f"{single.which} model: {single.probability:.2f}\npredicts {single.prediction[:LETTERS]}",
                weight="bold" if single.prediction == image.class_name else "normal",
            )
        for panel in axes:
            _draw_grid(panel, grid)
        bar = figure.colorbar(drawn, ax=list(axes[1:]), shrink=0.85, aspect=18)
        bar.set_label("fall of the probability\nif this part is blurred", fontsize=SMALL)
        figure.suptitle(f"Probability of {image.class_name[:LETTERS]}: {Path(image.name).name[:LETTERS]}", fontsize=9)
        content = BytesIO()
        FigureCanvasBase(figure).print_figure(content, format="png", **PNG)
    return content.getvalue()


def _draw_grid(panel: Axes, grid: Grid) -> None:
    edges = np.arange(0, grid.side + 1, grid.stride) - 0.5
    panel.set_xticks(edges, labels=[])
    panel.set_yticks(edges, labels=[])
    panel.tick_params(length=0)
    panel.set_axisbelow(False)
    panel.grid(True, color="#606060", linewidth=0.4)
    panel.set_aspect("equal")


# -- summary -----------------------------------------------------------------------------------------------------------


def verdict(summary: MapSummary) -> str:
    """Return in a sentence whether the maps of a model order the cells better than the centre does."""
    centre = next(against for against in summary.against if against.other == "centre")
    if summary.images < 2:
        return f"One image says nothing about the maps of the {summary.which} model in general: explain more images."
    numbers = f"({_signed(centre)} on {summary.images} images)"
    few = f" {summary.images} images are few: explain {FEWEST_IMAGES} or more." * (summary.images < FEWEST_IMAGES)
    if centre.is_beaten:
        return (
            f"The maps of the {summary.which} model order the cells of these images better than a Gaussian at the "
            f"centre does {numbers}.{few}"
        )
    return (
        f"The maps of the {summary.which} model do NOT order the cells of these images better than a Gaussian at the "
        f"centre does {numbers}. Do not take them as evidence of what the model looks at.{few}"
    )


def _signed(against: Against) -> str:
    error = "" if against.standard_error is None else f" +- {against.standard_error:.3f}"
    return f"{against.difference:+.3f}{error}"


def summary_text(
    models: Sequence[SiteModel], files: dict[str, ExplainedImage], summaries: Sequence[MapSummary], grid: Grid
) -> str:
    """Return the summary as Markdown."""
    lines = [
        "# Occlusion maps",
        "",
        f"Models: {', '.join(f'{model.name} ({model.id})' for model in models)}.",
        f"A window of {grid.window} x {grid.window} pixels was blurred in steps of {grid.stride} pixels; the input has "
        f"{grid.side} x {grid.side} pixels. A cell shows by how much the probability of the class falls.",
        "",
        *(f"**{verdict(summary)}**\n" for summary in summaries),
        "Score: area under the insertion curve minus area under the deletion curve; higher is better. +- is one "
        "standard error over images. Blurring makes both the maps and the curves, which favours the maps.",
        "",
        "| model | images | score of the maps | against | its score | difference | maps better on |",
        "|---|---|---|---|---|---|---|",
    ]
    for summary in summaries:
        for against in summary.against:
            lines.append(
                f"| {summary.which} | {summary.images} | {summary.score:+.3f} | {ORDERS[against.other]} | "
                f"{against.score:+.3f} | {_signed(against)} | {against.better} of {summary.images} |"
            )
    lines += ["", "| image | class | model | probability | predicts | score |", "|---|---|---|---|---|---|"]
    for name, image in files.items():
        for single in image.maps:
            lines.append(
                f"| [{_cell(Path(image.name).name)}]({name}) | {_cell(image.class_name)} | {single.which} | "
                f"{single.probability:.3f} | {_cell(single.prediction)} | {single.curves.score:+.3f} |"
            )
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _content(
    models: Sequence[SiteModel], explained: Sequence[ExplainedImage], summaries: Sequence[MapSummary], grid: Grid
) -> dict[str, Any]:
    return {
        "pfedst_version": __version__,
        "models": [{"which": model.which, "site": model.site, "id": model.id} for model in models],
        "grid": asdict(grid),
        "summary": [asdict(summary) | {"verdict": verdict(summary)} for summary in summaries],
        "images": [
            {
                "image": image.name,
                "sha256": image.sha256,
                "class": image.class_name,
                "maps": [
                    {
                        "model": single.which,
                        "probability": single.probability,
                        "prediction": single.prediction,
                        "score": single.curves.score,
                        "cells": single.cells.tolist(),
                        "curves": asdict(single.curves),
                        "others": {key: asdict(curves) for key, curves in single.others.items()},
                    }
                    for single in image.maps
                ],
            }
            for image in explained
        ],
    }
