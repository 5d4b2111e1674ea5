"""What the sites report of each class: sensitivity, specificity, average precision, and why one of them is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pfedst.errors import listed
from pfedst.evaluation.averages import CLASS_METRICS
from pfedst.evaluation.bootstrap import FEWEST_UNITS
from pfedst.reporting.comparison import Compared, FinishedRun


@dataclass(frozen=True)
class Estimate:
    """A metric of a class at a site, with its interval.

    Attributes:
        value: in [0, 1]; None if it is not defined.
        interval: its ends; None if there is none.
        reason: why the value or the interval is missing, in words; empty if both are there.
    """

    value: float | None
    interval: tuple[float, float] | None
    reason: str


@dataclass(frozen=True)
class ClassAtSite:
    """What one model reaches for one class at one site.

    Attributes:
        site, name: of the site and of the class.
        images, units: number of images of the class, and of the patients or lesions that they show.
        share: share of the class among the images of the site, which is the average precision by chance.
        estimates: by metric, in the order of `CLASS_METRICS`.
    """

    site: str
    name: str
    images: int
    units: int
    share: float
    estimates: Mapping[str, Estimate]


def shown_run(compared: Compared) -> FinishedRun | None:
    """Return the run whose classes are shown: of the reference, the lowest seed; None if it has no such metrics.

    One run, since an interval over patients is that of one model; the summaries of all runs hold theirs.
    """
    run = compared.row(compared.reference).first
    return run if run.class_metrics else None


def classes_at_sites(run: FinishedRun, classes: list[str], sites: list[str]) -> list[ClassAtSite]:
    """Return all classes at all sites that have reported, in the order of the classes and sites of a table."""
    return [
        _of_class(site, name, table, run.class_metrics[site]["images"])
        for site in sites
        if site in run.class_metrics
        for name, table in zip(classes, run.class_metrics[site]["personal"], strict=False)  # none without images
    ]


def _of_class(site: str, name: str, table: Mapping[str, Any], images: int) -> ClassAtSite:
    units, others = table["units"], table["other_units"]
    needed = {"sensitivity": (units,), "specificity": (others,), "average_precision": (units, others)}
    estimates = {metric: _estimate(table[metric], units, needed[metric]) for metric in CLASS_METRICS}
    return ClassAtSite(site, name, table["images"], table["units"], table["images"] / max(1, images), estimates)


def _estimate(found: Mapping[str, Any], units: int, needed: Sequence[int]) -> Estimate:
    """Return a metric that needs so many units with the class, or without it."""
    interval = None if found["low"] is None else (found["low"], found["high"])
    if found["value"] is None:
        reason = "no image of the class" if not units else "no image of another class"
    elif interval is None:
        reason = f"fewer than {FEWEST_UNITS} units" if min(needed) < FEWEST_UNITS else "all resamples agree"
    else:
        reason = ""
    return Estimate(found["value"], interval, reason)


def units_text(run: FinishedRun, sites: list[str]) -> str:
    """Describe what is resampled at each site, and which sites have reported nothing."""
    reported = [site for site in sites if site in run.class_metrics]
    unknown = {site: run.class_metrics[site]["without_unit"] for site in reported}
    sentences = ["Intervals: 95 % bootstrap within a site over patients or lesions, of one model."]
    if partly := [site for site in reported if unknown[site]]:
        counted = ", ".join(
            f"{site} ({unknown[site]} of {run.class_metrics[site]['images']} images)" for site in partly
        )
        sentences.append(
            f"The patient or lesion is not known at {counted}: there each image is drawn by itself, and the interval "
            f"is too narrow if a patient has several."
        )
    if absent := [site for site in sites if site not in run.class_metrics]:
        sentences.append(f"Not computed at {listed(absent)}.")
    return " ".join(sentences)
