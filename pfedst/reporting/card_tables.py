"""The tables of the card of a run, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pfedst.evaluation.averages import METRICS, SITE_METRICS
from pfedst.reporting.report_table import percent
from pfedst.reporting.subgroup_table import RARE, subgroups_at_sites
from pfedst.reporting.tables import metric_title, metric_words

MODELS = ("personal", "generic")
OVER_CLASSES = ("balanced_accuracy", "auroc")
"""Metrics that are means over classes."""
UNITS = "patients or lesions where they are known and over images elsewhere"


def estimates(summary: Mapping[str, Any]) -> dict[str, dict[str, dict[str, dict[str, float | None]]]]:
    """Return by site, model and metric the value and the ends of its interval, which are None where there is none."""
    found: dict[str, dict[str, dict[str, dict[str, float | None]]]] = {}
    for model in (model for model in MODELS if model in summary):
        for site, metrics in summary[model]["clients"].items():
            of_site = summary["intervals"].get(site, {})
            # a site reports one model where the generic one is the same
            of_model = of_site.get(model, of_site.get("personal", {}))
            found.setdefault(site, {})[model] = {
                metric: _estimate(metrics[metric], of_model.get(metric)) for metric in METRICS
            }
    return found


def _estimate(value: float | None, found: Mapping[str, float | None] | None) -> dict[str, float | None]:
    if value is None or found is None:
        return {"value": value, "low": None, "high": None}
    return {"value": value, "low": found["low"], "high": found["high"]}


def sites(summary: Mapping[str, Any]) -> list[str]:
    """Return the table of each hospital's metrics, with a note on its intervals."""
    samples, split = summary["protocol"]["samples"], summary["evaluated"]["split"]
    held_out, found = summary["protocol"]["held_out_sites"], estimates(summary)
    metrics = [metric for metric in METRICS if metric in summary["personal"]["mean"]]
    rows = [
        (
            f"{site} (never trained)" if site in held_out else site,
            model,
            samples[site][split],
            *(_marked(found[site][model][metric], metric, summary["intervals"].get(site)) for metric in metrics),
        )
        for model in MODELS
        for site in found
        if model in found[site]
    ]
    made = table(("hospital", "model", "images", *(f"{metric_title(metric)}, %" for metric in metrics)), rows)
    return [made, _intervals_note(summary["intervals"])]


def _marked(estimate: Mapping[str, float | None], metric: str, found: Mapping[str, Any] | None) -> str:
    """Return a metric with its interval, and a star where the interval is too narrow."""
    narrow = found is not None and found["rare_classes"] and metric in OVER_CLASSES and estimate["low"] is not None
    return interval(estimate) + r" \*" * bool(narrow)


def _intervals_note(intervals: Mapping[str, Any]) -> str:
    if not intervals:
        return "Intervals were not recorded."
    names = ", ".join(metric_words(metric) for metric in SITE_METRICS)
    note = (
        f"In brackets, for {names}: the 95 % bootstrap interval within the hospital, over {UNITS}. It is that of one "
        f"trained model, and says nothing of another training or hospital. None if there are too few."
    )
    rare = [f"{site} ({of['rare_classes']} of {of['classes']})" for site, of in intervals.items() if of["rare_classes"]]
    return f"{note} \\* {RARE} They are at: {', '.join(rare)}." if rare else note


def subgroups(summary: Mapping[str, Any]) -> list[str]:
    """Return the table of subgroups, with a note."""
    if not summary["subgroups"]:
        return ["Not recorded: `--data.subgroups` names columns of the table of images, such as sex or device."]
    rows = [
        (
            found.column,
            found.name,
            found.site,
            found.sizes.get("images", "-"),
            found.sizes.get("units", "-"),
            found.sizes.get("classes", "-"),
            *(interval(found.estimates[metric]) if found.estimates else "-" for metric in SITE_METRICS),
            found.note,
        )
        for found in subgroups_at_sites(summary["subgroups"])
    ]
    metrics = (f"{metric_title(metric)}, %" for metric in SITE_METRICS)
    headings = ("column", "subgroup", "hospital", "images", "patients or lesions", "classes", *metrics, "note")
    note = (
        f"Personal model, on {summary['evaluated']['split']}. Balanced accuracy and AUROC are means over the classes "
        f"that are present in the subgroup. In brackets the 95 % bootstrap interval, over {UNITS}. {RARE} Differences "
        f"between subgroups are not tested."
    )
    return [table(headings, rows), note]


def classes(summary: Mapping[str, Any]) -> list[str]:
    """Return the table of each class at each hospital, with a note."""
    if not summary["class_metrics"]:
        return ["Not recorded."]
    names = summary["protocol"]["classes"]
    rows = [
        (site, name, of["images"], of["units"], interval(of["sensitivity"]), interval(of["specificity"]))
        for site, found in summary["class_metrics"].items()
        for name, of in zip(names, found["personal"], strict=True)
    ]
    headings = ("hospital", "class", "images", "patients or lesions", "sensitivity, %", "specificity, %")
    note = (
        "Personal model. In brackets the 95 % bootstrap interval within the hospital, over patients or lesions where "
        "they are known and over images elsewhere; none if there are too few. Confusion counts are in `summary.json`."
    )
    return [table(headings, rows), note]


def interval(found: Mapping[str, float | None]) -> str:
    """Return a share in per cent, with its interval if there is one."""
    if found["low"] is None or found["high"] is None:
        return percent(found["value"])
    return f"{percent(found['value'])} ({percent(found['low'])} to {percent(found['high'])})"


def calibration(summary: Mapping[str, Any]) -> str:
    """Return the table of temperatures and calibration errors."""
    if not summary["calibration"]:
        return "Not recorded."
    rows = []
    for site, found in summary["calibration"].items():
        before, after = (found["test"].get(moment) or {} for moment in ("before", "after"))
        reason = found["reason"] or "fitted on validation"
        rows.append(
            (site, f"{found['temperature']:.2f}", percent(before.get("ece")), percent(after.get("ece")), reason)
        )
    return table(("hospital", "temperature", "ECE before, %", "ECE after, %", "how"), rows)


def table(headings: Sequence[str], rows: Any) -> str:
    """Return a table in Markdown."""
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    lines = [headings, ["---"] * len(headings), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
