"""An audit report for the terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pfedst.data.audit.findings import AuditReport
from pfedst.data.sources import listed

STYLES = {"error": "bold red", "warning": "yellow", "note": "cyan"}
EXAMPLES = 3
TOGETHER = 4


def counts_table(report: AuditReport) -> Table:
    """Sites and splits down, classes across; a class that a split lacks stands out."""
    table = Table(title=report.label)
    table.add_column("site")
    table.add_column("split")
    table.add_column("images", justify="right")
    for name in report.sites.class_names:
        table.add_column(name, justify="right")
    for site, splits in report.counts().items():
        for number, (split, counts) in enumerate(splits.items()):
            cells = [f"{count:,}" if count else "[bold yellow]-[/]" for count in counts]
            table.add_row("" if number else site, split, f"{sum(counts):,}", *cells)
        table.add_section()
    return table


def overlap_table(report: AuditReport) -> Table | None:
    """Sites down: test images that share a group with a training image."""
    rows = (report.figures.get("groups") or {}).get("test_overlap")
    if not rows:
        return None
    table = Table(title="test images that share a group (patient, lesion) with a training image")
    for heading in ("site", "test images", "sharing", "%"):
        table.add_column(heading, justify="left" if heading == "site" else "right")
    for site, row in rows.items():
        share = f"{100 * row['share']:.1f}"
        table.add_row(site, f"{row['test_images']:,}", f"{row['sharing_a_group_with_train']:,}", share)
    return table


def shift_table(report: AuditReport) -> Table | None:
    """Sites by sites: how well the encoder's embedding tells them apart."""
    shift = report.figures.get("site_shift")
    if not shift:
        return None
    pairs, title = shift["told_apart"], "images whose site a linear classifier names rightly (chance 50), %"
    table = Table(title=f"{title}\n{shift['encoder']}")
    table.add_column("")
    for site in pairs:
        table.add_column(site, justify="right")
    for one, row in pairs.items():
        values = [row.get(other) for other in pairs]
        table.add_row(one, *("-" if value is None else f"{100 * value:.0f}" for value in values))
    return table


def findings_text(report: AuditReport) -> Text:
    """Every finding with its remedy, and a few of its images."""
    text = Text()
    for finding in report.findings:
        text.append(f"{finding.severity:8}", style=STYLES[finding.severity])
        text.append(f"{finding.message}\n")
        text.append(f"{'':8}-> {finding.remedy}\n", style="dim")
        for together in finding.images[:EXAMPLES]:
            told = [report.describe(place) for place in together]
            # the end of a path tells an image; the JSON has the whole
            names = [f"{_end(t['image'])} ({t['site']}, {t['split']}, {t['class']})" for t in told]
            text.append(f"{'':11}{listed(names, '  |  ', TOGETHER)}\n")
        if len(finding.images) > EXAMPLES:
            text.append(f"{'':11}and {len(finding.images) - EXAMPLES:,} more\n")
    return text


def _end(name: str) -> str:
    return "/".join(name.replace("\\", "/").split("/")[-2:])


def rendered(report: AuditReport) -> RenderableType:
    """The whole report."""
    tables = [counts_table(report), overlap_table(report), shift_table(report)]
    parts: list[RenderableType] = [table for table in tables if table is not None]
    return Group(*parts, findings_text(report), Text(report.headline(), style="bold"))
