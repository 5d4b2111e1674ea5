"""The table of temperatures: calibration of each site's model before and after, and what a threshold gives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pfedst.reporting.comparison import Compared, FinishedRun
from pfedst.reporting.report_table import Cell, ReportTable, percent

METRICS = {"ece": "ECE", "nll": "NLL", "brier": "Brier"}
OF_TRAINING = "training"
"""The prior of a temperature if the class frequencies that the model has learned are not known."""


def calibrated_run(compared: Compared) -> FinishedRun | None:
    """Return the run whose temperatures are shown: of the reference, the lowest seed; None if it has none."""
    run = compared.row(compared.reference).first
    return run if run.calibration else None


def temperature_table(compared: Compared) -> ReportTable | None:
    """Table of sites by temperature, metrics before and after, and coverage; None if the reference has none."""
    run = calibrated_run(compared)
    if run is None:
        return None
    sites = [site for site in compared.sites if site in run.calibration]
    rows = tuple((Cell(site), *_cells(run.calibration[site])) for site in sites)
    changes = [f"{words}{', %' if metric == 'ece' else ''}, {moment}" for metric, words in METRICS.items()
               for moment in ("T = 1", "fitted T")]  # fmt: skip
    headings = (
        "site", "validation images", "errors", "T", *changes,
        "coverage asked, %", "coverage, %", "selective accuracy, %",
    )  # fmt: skip
    return ReportTable("temperatures", "Temperature and abstention", _caption(compared, run, sites), headings, rows)


def _cells(found: Mapping[str, Any]) -> list[Cell]:
    test = found["test"]
    cells = [Cell(str(found[key]), found[key]) for key in ("images", "errors")]
    cells.append(Cell(f"{found['temperature']:.2f}", found["temperature"]))
    for metric in METRICS:
        for moment in ("before", "after"):
            value = test[moment][metric] if test["images"] else None
            text = percent(value) if metric == "ece" else "-" if value is None else f"{value:.3f}"
            cells.append(Cell(text, value))
    given = test.get("selective") or {}
    for value in (found["coverage"], given.get("coverage"), given.get("accuracy")):
        cells.append(Cell(percent(value), value))
    return cells


def _caption(compared: Compared, run: FinishedRun, sites: list[str]) -> str:
    split = run.protocol["split"]
    sentences = [
        f"Personal model of {compared.reference} with {run.words}. Each site fits one temperature T and one threshold "
        f"on its validation images. ECE, NLL (nats) and Brier score (0 to 2) are of {split}, with T = 1 and with the "
        f"fitted T, at the class frequencies of the site. The model predicts if its confidence reaches the threshold. "
        f"Coverage: share of the images with a prediction; selective accuracy: share of these that are right."
    ]
    if reasons := [f"{site} ({why})" for site in sites if (why := run.calibration[site]["reason"])]:
        sentences.append(f"Neither temperature nor threshold: {', '.join(reasons)}.")
    if plain := [site for site in sites if run.calibration[site]["prior"] == OF_TRAINING]:
        where = "" if len(plain) == len(sites) else f" at {', '.join(plain)}"
        sentences.append(
            f"The class frequencies that the model has learned are not known{where}: there T divides its logits, and "
            f"the numbers are at the frequencies of its training."
        )
    if absent := [site for site in compared.sites if site not in run.calibration]:
        sentences.append(f"Not fitted without validation images, or not reported: {', '.join(absent)}.")
    return " ".join(sentences)
