"""The figures of an audit as plain tables, for the terminal and the HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pfedst.data.audit.findings import AuditReport


@dataclass(frozen=True)
class PlainTable:
    """Text in rows. The first cell of a row names it; an empty cell is highlighted as missing."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]


def tables(report: AuditReport) -> list[PlainTable]:
    """Return the tables for which the report has figures."""
    found = [_counts(report)]
    if groups := report.figures.get("groups"):
        found.append(_overlap(groups["test_overlap"]))
    if shift := report.figures.get("site_shift"):
        found.append(_shift(shift))
    return found


def _counts(report: AuditReport) -> PlainTable:
    rows = [
        [site, split, f"{sum(counts):,}", *(f"{count:,}" if count else "" for count in counts)]
        for site, splits in report.counts().items()
        for split, counts in splits.items()
    ]
    headings = ["site", "split", "images", *map(str, report.sites.class_names)]
    return PlainTable("Images of every site, split and class", headings, rows)


def _overlap(overlap: dict[str, Any]) -> PlainTable:
    rows = [
        [site, f"{row['test_images']:,}", f"{row['sharing_a_group_with_train']:,}", f"{100 * row['share']:.1f}"]
        for site, row in (*overlap["sites"].items(), ("all sites", overlap["all"]))
    ]
    title = "Test images that share a group (patient, lesion) with a training image"
    return PlainTable(title, ["site", "test images", "sharing", "%"], rows)


def _shift(shift: dict[str, Any]) -> PlainTable:
    pairs = shift["told_apart"]
    rows = []
    for one, row in pairs.items():
        values = [row.get(other) for other in pairs]
        rows.append([one, *("·" if value is None else f"{100 * value:.0f}" for value in values)])
    title = (
        "Images whose site a linear classifier identifies, two sites at a time, classes matched (chance 50), %; "
        f"at most {shift['images_per_site']} images a site, {shift['encoder']}"
    )
    return PlainTable(title, ["", *pairs], rows)
