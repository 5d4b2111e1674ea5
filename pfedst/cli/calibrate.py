"""`pfedst calibrate`: temperature and threshold of a site's model, anew from the predictions that the site has kept.

Neither images nor an encoder are needed. What needs torch is imported after the options are parsed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from pfedst.cli.command_parser import CommandParser
from pfedst.errors import ConfigurationError, DataError, listed, nearest
from pfedst.reporting import console_of
from pfedst.reporting.earlier_formats import present_summary
from pfedst.reporting.report_table import percent
from pfedst.reporting.run_folder import RunFolder
from pfedst.reporting.temperature_table import METRICS


def run_calibrate(arguments: Sequence[str]) -> int:
    """Fit the temperature of one site, write its calibration, and print what it does. Return the exit code."""
    parser = CommandParser(
        prog="pfedst calibrate",
        description="Fit temperature and threshold of a site's model on its saved predictions on validation.",
    )
    parser.add_argument("run", type=Path, help="folder of a finished run that contains the folder of the site")
    parser.add_argument("--site", required=True, help="name of the site")
    parser.add_argument(
        "--coverage",
        type=float,
        default=0.8,
        help="share of the images for which the model predicts; default: %(default)s",
    )
    given = parser.parse_args(arguments)
    if not 0 < given.coverage < 1:
        raise ConfigurationError(f"--coverage {given.coverage:g}: must be above 0 and below 1")
    summary = _summary(given.run, given.site)
    from pfedst.client.calibration import calibrate
    from pfedst.client.state import SiteState

    folder = SiteState(given.run / "sites", given.site).folder
    if not folder.is_dir():
        raise ConfigurationError(
            f"{folder} is missing: the predictions of site {given.site} are kept at the site; run the command there"
        )
    protocol = summary["protocol"]
    finetuned = bool(protocol["rounds"] and protocol["method_options"].get("finetune_epochs"))
    made = calibrate(folder, summary["evaluated"]["round"], finetuned, given.coverage)
    file = folder / "calibration.json"
    if made.reported["reason"]:
        raise DataError(f"site {given.site}: nothing was fitted: {made.reported['reason']}; {file} is not changed")
    made.calibration.save(folder)
    _print(given.site, made.reported, made.calibration.threshold)
    print(f"written: {file}")
    return 0


def _summary(run: Path, site: str) -> Mapping[str, Any]:
    """Return the summary of a finished run that has validation images at a site.

    Raises:
        ConfigurationError: no such run or site, or no validation images.
        StateError: the run is not finished, or its summary is damaged.
    """
    found = RunFolder(run).finished()
    samples = found["protocol"]["samples"]
    if site not in samples:
        raise ConfigurationError(
            f"--site {site}: {run} has no such site.{nearest(site, samples)} There are: {listed(list(samples))}"
        )
    if not samples[site]["validation"]:
        raise ConfigurationError(f"--site {site}: the site has no validation images, so nothing can be fitted")
    return present_summary(found, run / "summary.json")


def _print(site: str, found: Mapping[str, Any], threshold: float | None) -> None:
    """Print a calibration."""
    console, test = console_of(120), found["test"]
    told = f"{site}: T = {found['temperature']:.2f}, {found['images']} validation images, {found['errors']} errors"
    console.print(told, highlight=False, markup=False)
    if found["prior"] == "training":
        console.print("The class frequencies that the model has learned are not known: T divides its logits.")
    if not test["images"]:
        console.print("There are no predictions on test to measure it on.")
        return
    table = Table(title=f"on {test['images']} test images")
    for heading in ("", *METRICS.values()):
        table.add_column(heading, justify="right" if heading else "left")
    for moment, words in (("before", "T = 1"), ("after", "fitted T")):
        values = [test[moment][metric] for metric in METRICS]
        table.add_row(words, f"{percent(values[0])} %", *("-" if v is None else f"{v:.3f}" for v in values[1:]))
    console.print(table, highlight=False)
    if threshold is not None:
        given = test["selective"]
        console.print(
            f"coverage {percent(found['coverage'])} % asked for, {percent(given['coverage'])} % on test, of which "
            f"{percent(given['accuracy'])} % are right; threshold {threshold:.4f}",
            highlight=False,
        )
