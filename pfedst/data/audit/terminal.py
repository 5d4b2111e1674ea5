"""Render an audit report for the terminal. Names are printed literally, never parsed as rich markup."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pfedst.data.audit.findings import AuditReport
from pfedst.data.audit.tables import PlainTable, tables
from pfedst.errors import listed

STYLES = {"error": "bold red", "warning": "yellow", "note": "cyan"}
EXAMPLES = 3
TOGETHER = 4


def rendered(report: AuditReport) -> RenderableType:
    """Return the whole report."""
    drawn = [_drawn(table) for table in tables(report)]
    return Group(Text(report.label, style="bold"), *drawn, _findings(report), Text(report.headline(), style="bold"))


def _drawn(plain: PlainTable) -> Table:
    table = Table(title=Text(plain.title), title_justify="left")
    for number, heading in enumerate(plain.headings):
        table.add_column(Text(heading), justify="right" if number else "left")
    for row in plain.rows:
        table.add_row(*(Text(cell) if cell else Text("-", style="bold yellow") for cell in row))
    return table


def _findings(report: AuditReport) -> Text:
    """Return every finding with its remedy and a few of its images."""
    text = Text()
    for finding in report.findings:
        text.append(f"{finding.severity:8}", style=STYLES[finding.severity])
        text.append(f"{finding.message}\n")
        text.append(f"{'':8}-> {finding.remedy}\n", style="dim")
        for together in finding.images[:EXAMPLES]:
            described = [report.describe(place) for place in together]
            # the end of a path identifies an image; the JSON has the whole path
            names = [f"{_end(d['image'])} ({d['site']}, {d['split']}, {d['class']})" for d in described]
            text.append(f"{'':11}{listed(names, '  |  ', TOGETHER)}\n")
        if len(finding.images) > EXAMPLES:
            text.append(f"{'':11}and {len(finding.images) - EXAMPLES:,} more\n")
    return text


def _end(name: str) -> str:
    return "/".join(name.replace("\\", "/").split("/")[-2:])
