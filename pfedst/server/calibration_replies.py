"""The check of the replies to `calibrate`: numbers of one model, and nothing of a single image."""

from __future__ import annotations

from typing import Any, TypeGuard

from pfedst.evaluation.calibration import REASONS
from pfedst.evaluation.counts import BINS
from pfedst.evaluation.selective import MOST_POINTS
from pfedst.evaluation.stated import SITE
from pfedst.messages.records import is_count, is_number, is_positive
from pfedst.methods.priors import TRAINING

FITTED = ("temperature", "images", "errors", "reason", "prior", "coverage")
METRICS = ("ece", "nll", "brier")
MOMENTS = ("before", "after")
RELIABILITY = {"images": is_count, "right": is_count, "confidence": is_positive}
SELECTIVE = ("coverage", "accuracy")


def is_calibration(found: Any, validation: int, test: int) -> TypeGuard[dict[str, Any]]:
    """Return True for a calibration of a model with so many images on validation and test."""
    if not isinstance(found, dict) or not set(found) >= {*FITTED, "test"}:
        return False
    return (
        found["images"] == validation
        and is_count(found["images"])
        and is_count(found["errors"])
        and found["errors"] <= validation
        and is_positive(found["temperature"])
        and found["temperature"] > 0
        and found["reason"] in (None, *REASONS)
        and found["prior"] in (SITE, TRAINING)
        and _is_share(found["coverage"])
        and _is_measured(found["test"], test, found["reason"] is None)
    )


def known_of_calibration(found: dict[str, Any]) -> dict[str, Any]:
    """Return the known keys of what `is_calibration` accepts."""
    test = found["test"]
    measured: dict[str, Any] = {"images": test["images"]}
    if test["images"]:
        for moment in MOMENTS:
            reliability = {key: test[moment]["reliability"][key] for key in RELIABILITY}
            measured[moment] = {key: test[moment][key] for key in METRICS} | {"reliability": reliability}
        given = test["selective"]
        measured["selective"] = None if given is None else {key: given[key] for key in SELECTIVE}
        measured["risk_coverage"] = [list(point) for point in test["risk_coverage"]]
    return {key: found[key] for key in FITTED} | {"test": measured}


def _is_measured(test: Any, images: int, abstains: bool) -> bool:
    """Return True for the numbers on so many test images."""
    if not isinstance(test, dict) or not is_count(test.get("images")) or test["images"] != images:
        return False
    if not images:
        return True
    curve, given = test.get("risk_coverage"), test.get("selective")
    if not isinstance(curve, list) or len(curve) > MOST_POINTS or not all(map(_is_point, curve)):
        return False
    if not all(_is_moment(test.get(moment), images) for moment in MOMENTS):
        return False
    return _is_selective(given) if abstains else given is None


def _is_moment(found: Any, images: int) -> bool:
    if not isinstance(found, dict) or not all(key in found for key in (*METRICS, "reliability")):
        return False
    bins = found["reliability"]
    whole = isinstance(bins, dict) and all(
        isinstance(bins.get(key), list) and len(bins[key]) == BINS and all(map(check, bins[key]))
        for key, check in RELIABILITY.items()
    )
    numbers = all(found[key] is None or is_positive(found[key]) for key in METRICS)
    return whole and numbers and sum(bins["images"]) == images >= sum(bins["right"])


def _is_selective(found: Any) -> bool:
    if not isinstance(found, dict) or not set(found) >= set(SELECTIVE) or not _is_share(found["coverage"]):
        return False
    return _is_share(found["accuracy"]) if found["coverage"] else found["accuracy"] is None


def _is_point(found: Any) -> bool:
    return isinstance(found, list) and len(found) == 2 and all(map(_is_share, found))


def _is_share(value: Any) -> bool:
    return is_number(value) and 0 <= value <= 1
