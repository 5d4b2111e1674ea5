"""Summaries and comparisons of earlier versions, as the present version writes them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pfedst.errors import StateError
from pfedst.evaluation import CALIBRATION
from pfedst.reporting.best_round import OF_PREDICTIONS
from pfedst.reporting.comparison import has_present_bins
from pfedst.reporting.summary import FORMAT, PRIOR


def present_summary(summary: Mapping[str, Any], file: Path) -> Mapping[str, Any]:
    """Return a summary in the present format; format 1 did not record options, versions and hashes.

    Older summaries have no metrics of classes and no temperatures, and calibration errors in other bins, which are left
    out.

    Args:
        summary: of any format.
        file: for the error.

    Raises:
        StateError: its format is not known.
    """
    found = summary.get("format")
    if found not in (1, FORMAT):
        raise StateError(
            f"{file} is of another version of pfedst (format {found}, this version reads 1 and {FORMAT}); run "
            f"it again, under another name"
        )
    unknown_then: dict[str, Any] = {key: {} for key in OF_PREDICTIONS} | {"environment": None, "warnings": None}
    present: dict[str, Any] = {**unknown_then, **summary}
    if found == 1:
        protocol = summary["protocol"]
        unknown: dict[str, Any] = {"pfedst_version": None, "study": {}, "last_digits": {}, "content": {}}
        evaluated = {"round": protocol["round"], "split": protocol["split"], "prior": PRIOR}
        present |= {"format": FORMAT, **unknown, "evaluated": evaluated}
    return present


def in_present_bins(summary: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a summary without the calibration errors of older versions, which are in other bins."""
    if has_present_bins(summary):
        return summary
    return {**summary, **{model: _without_calibration(summary[model]) for model in ("personal", "generic")}}


def _without_calibration(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metrics of a model without calibration errors."""
    unknown = dict.fromkeys(CALIBRATION)
    columns = {key: {**table, **unknown} for key, table in found.items() if key not in ("clients", "counts")}
    clients = {site: {**metrics, **unknown} for site, metrics in found["clients"].items()}
    return {**found, **columns, "clients": clients}


def in_parts(tuned: dict[str, Any]) -> dict[str, Any]:
    """Return what was tuned in parts; pfedst up to 0.2.0 wrote the part of a row without folds by itself."""
    if "parts" in tuned:
        return tuned
    return {"parts": [{"split_seed": None, "fold": None, **tuned}], "edges": None}
