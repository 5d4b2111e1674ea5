"""Replies with the metrics of a site and of its subgroups, checked before the server uses them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pfedst.evaluation.averages import SITE_METRICS
from pfedst.evaluation.subgroups import MOST_LETTERS, MOST_SUBGROUPS, reasons
from pfedst.messages.records import is_count, is_number

SIZES = ("images", "units", "classes", "rare_classes")
ENDS = ("value", "low", "high")
"""Keys of an estimate."""
MOST_COLUMNS = 100
MOST_SEVERITIES = 10
ROUNDING = 1e-6


def is_audit(found: Any) -> bool:
    """Return True for the summary of an audit of data, or None."""
    if found is None:
        return True
    if not isinstance(found, dict) or not isinstance(found.get("opened"), bool):
        return False
    findings, codes = found.get("findings"), found.get("codes")
    return (
        isinstance(findings, dict)
        and len(findings) <= MOST_SEVERITIES
        and all(isinstance(key, str) and key.isidentifier() and is_count(number) for key, number in findings.items())
        and isinstance(codes, list)
        and all(isinstance(code, str) for code in codes)
    )


def is_estimate(found: Any, images: int) -> bool:
    """Return True for a share of some images with its interval; None where a number is not defined."""
    if not isinstance(found, dict) or not set(found) >= set(ENDS):
        return False
    value, low, high = (found[key] for key in ENDS)
    if not all(number is None or (images > 0 and _is_share(number)) for number in (value, low, high)):
        return False
    return (low is None) == (high is None) and (low is None or (value is not None and low <= high))


def _is_share(found: Any) -> bool:
    return is_number(found) and 0 <= found <= 1 + ROUNDING


def known_of_site(found: Any, images: int, models: Sequence[str]) -> dict[str, Any] | None:
    """Return the known keys of the metrics of a site on so many images; None if no client sends this.

    Args:
        found: what a client sent.
        images: most images that it can be of.
        models: whose metrics may be in it; the first one must be.
    """
    if not isinstance(found, dict) or not all(is_count(found.get(key)) for key in SIZES):
        return None
    there = [model for model in models if model == models[0] or model in found]
    if not found["rare_classes"] <= found["classes"] <= found["images"] <= images >= found["units"]:
        return None
    if not all(_is_table(found.get(model), found["images"]) for model in there):
        return None
    of_models = {
        model: {metric: {key: found[model][metric][key] for key in ENDS} for metric in SITE_METRICS} for model in there
    }
    return {key: found[key] for key in SIZES} | of_models


def _is_table(found: Any, images: int) -> bool:
    return isinstance(found, dict) and all(is_estimate(found.get(metric), images) for metric in SITE_METRICS)


def known_of_subgroups(found: Any, images: int, models: Sequence[str]) -> dict[str, Any] | None:
    """Return the known keys of the metrics of subgroups; None if no client sends this. Arguments as above."""
    minimum, columns = (found.get(key, 0) if isinstance(found, dict) else 0 for key in ("minimum", "columns"))
    if not is_count(minimum) or minimum < 1 or not isinstance(columns, dict) or len(columns) > MOST_COLUMNS:
        return None
    known = {}
    for column, tables in columns.items():
        if not _is_name(column) or not isinstance(tables, list) or len(tables) > MOST_SUBGROUPS:
            return None
        kept = [_known_of_one(table, minimum, lambda table: known_of_site(table, images, models)) for table in tables]
        if None in kept or sum(table.get("images", 0) for table in kept if table) > images:
            return None
        known[column] = kept
    return {"minimum": minimum, "columns": known}


def _known_of_one(table: Any, minimum: int, numbers: Callable[[Any], dict[str, Any] | None]) -> dict[str, Any] | None:
    """Return the name of a subgroup with the reason why it is withheld, or with its numbers, of the minimum or more."""
    if not isinstance(table, dict) or not _is_name(table.get("name")):
        return None
    name = {"name": table["name"]}
    if "withheld" in table:
        return name | {"withheld": table["withheld"]} if table["withheld"] in reasons(minimum) else None
    found = numbers(table)
    return name | found if found is not None and found["units"] >= minimum else None


def _is_name(found: Any) -> bool:
    return isinstance(found, str) and len(found) <= MOST_LETTERS
