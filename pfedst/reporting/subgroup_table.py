"""The table of subgroups: what the personal model reaches for each sex, age band, device and the like."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pfedst.evaluation.averages import SITE_METRICS
from pfedst.evaluation.bootstrap import FEWEST_UNITS
from pfedst.reporting.comparison import Compared
from pfedst.reporting.report_table import Cell, ReportTable, percent
from pfedst.reporting.tables import metric_words

RARE = (
    f"Rare classes have images of fewer than {FEWEST_UNITS} patients or lesions: the intervals of balanced accuracy "
    f"and AUROC are too narrow then."
)


@dataclass(frozen=True)
class SubgroupAtSite:
    """A subgroup of the images of a site.

    Attributes:
        site, column, name: of the site, of the column and of the subgroup.
        sizes: number of images, units, classes and rare classes; empty if the subgroup is withheld.
        estimates: by metric, its value and the ends of its interval; empty if the subgroup is withheld.
        note: why the subgroup is withheld, or how many classes are rare; empty if neither is.
    """

    site: str
    column: str
    name: str
    sizes: Mapping[str, int]
    estimates: Mapping[str, Mapping[str, float | None]]
    note: str


def subgroups_at_sites(subgroups: Mapping[str, Any]) -> Iterator[SubgroupAtSite]:
    """Yield the subgroups of the personal model by column, subgroup and site, so that hospitals stand side by side.

    Args:
        subgroups: entry of a summary.
    """
    by_name: dict[str, dict[str, list[SubgroupAtSite]]] = {}
    for site, found in subgroups.items():
        for column, tables in found["columns"].items():
            for table in tables:
                of_column = by_name.setdefault(column, {})
                of_column.setdefault(table["name"], []).append(_at_site(site, column, table))
    for of_column in by_name.values():
        for at_sites in of_column.values():
            yield from at_sites


def _at_site(site: str, column: str, table: Mapping[str, Any]) -> SubgroupAtSite:
    if "withheld" in table:
        return SubgroupAtSite(site, column, table["name"], {}, {}, f"withheld: {table['withheld']}")
    sizes = {key: table[key] for key in ("images", "units", "classes", "rare_classes")}
    return SubgroupAtSite(site, column, table["name"], sizes, table["personal"], _rare_classes(table))


def _rare_classes(found: Mapping[str, Any]) -> str:
    rare, classes = found["rare_classes"], found["classes"]
    return f"rare classes: {rare} of {classes}" if rare else ""


def subgroup_table(compared: Compared) -> ReportTable | None:
    """Table of subgroups by site; None if the run of the reference has none."""
    run = compared.row(compared.reference).first
    if not run.subgroups:
        return None
    rows = []
    for found in subgroups_at_sites(run.subgroups):
        cells = [Cell(found.name), Cell(found.column), Cell(found.site)]
        for key in ("images", "units", "classes"):
            size = found.sizes.get(key)
            cells.append(Cell("-" if size is None else str(size), size))
        for metric in SITE_METRICS:
            estimate = found.estimates.get(metric, {"value": None, "low": None, "high": None})
            ends = f"{percent(estimate['low'])} to {percent(estimate['high'])}" if estimate["low"] is not None else "-"
            cells += [Cell(percent(estimate["value"]), estimate["value"]), Cell(ends)]
        rows.append((*cells, Cell(found.note)))
    metrics = [text for metric in SITE_METRICS for text in (metric_words(metric), f"{metric_words(metric)}, 95 %")]
    least = sorted({found["minimum"] for found in run.subgroups.values()})
    caption = (
        f"Personal model of {compared.reference} with {run.words} on {run.protocol['split']}, %, "
        f"{run.protocol['when']}. Balanced accuracy and AUROC are means over the classes that are present in the "
        f"subgroup: compare subgroups only where these are the same. Intervals: 95 % bootstrap within a site over "
        f"units, which are patients or lesions, or images where these are not known. {RARE} A subgroup below the "
        f"minimum of its site ({', '.join(map(str, least))}) is withheld, and the next larger one where it would give "
        f"the smaller one away. Nothing is tested: a difference between subgroups is a description."
    )
    headings = ("subgroup", "column", "site", "images", "units", "classes", *metrics, "note")
    return ReportTable("subgroups", "Subgroups of the images", caption, headings, tuple(rows))
