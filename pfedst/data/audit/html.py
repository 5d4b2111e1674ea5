"""An audit report as one HTML page that a browser opens from disk.

The page needs no script and no network; thumbnails are embedded.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from io import BytesIO

from PIL import Image

from pfedst.data.audit.findings import AuditReport, Finding
from pfedst.data.audit.tables import PlainTable, tables
from pfedst.data.sites import Place
from pfedst.errors import DataError

SHOWN = 24
THUMBNAIL = 128
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #222; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; margin: .5rem 0; } caption { text-align: left; color: #555; padding-bottom: .3rem; }
th, td { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; } td.none { background: #fdf3d7; font-weight: 600; }
.finding { border-left: .4rem solid; padding: .3rem 1rem; margin: 1rem 0; background: #f8f8f8; }
.error { border-color: #b2182b; } .warning { border-color: #e08214; } .note { border-color: #4393c3; }
.finding b { text-transform: uppercase; font-size: .8rem; letter-spacing: .05em; } .remedy { color: #555; }
.together { display: inline-flex; gap: .3rem; border: 1px solid #ccc; padding: .3rem; margin: .2rem; background: #fff; }
figure { margin: 0; width: 8.5rem; font-size: .7rem; overflow-wrap: anywhere; color: #555; }
img { width: 8rem; height: 8rem; object-fit: contain; background: #eee; }
"""


def page(report: AuditReport) -> str:
    """Return the HTML page."""
    figures = "".join(_table(plain) for plain in tables(report))
    findings = "\n".join(_finding(report, finding) for finding in report.findings)
    opened = "every image was opened" if report.opened else "tables alone: no image was opened"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Data audit</title>'
        f"<style>{STYLE}</style></head>\n<body><main><h1>Data audit</h1>\n"
        f"<p>{escape(report.label)}; {opened}.</p>\n<p><strong>{escape(report.headline())}</strong></p>\n"
        f"<h2>Findings</h2>\n{findings}\n<h2>Figures</h2>\n{figures}</main></body></html>\n"
    )


def _table(plain: PlainTable) -> str:
    head = "".join(f'<th scope="col">{escape(heading)}</th>' for heading in plain.headings)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" if cell else '<td class="none">-</td>' for cell in row) + "</tr>\n"
        for row in plain.rows
    )
    return f"<table><caption>{escape(plain.title)}</caption><tr>{head}</tr>\n{body}</table>\n"


def _finding(report: AuditReport, finding: Finding) -> str:
    shown = "".join(_together(report, together) for together in finding.images[:SHOWN])
    more = f"<p>and {len(finding.images) - SHOWN:,} more, in the JSON report</p>" if len(finding.images) > SHOWN else ""
    return (
        f'<div class="finding {finding.severity}"><b>{finding.severity}</b> {escape(finding.message)}<br>'
        f'<span class="remedy">{escape(finding.remedy)}</span>\n<div>{shown}</div>{more}</div>'
    )


def _together(report: AuditReport, places: Sequence[Place]) -> str:
    return f'<div class="together">{"".join(_figure(report, place) for place in places)}</div>\n'


def _figure(report: AuditReport, place: Place) -> str:
    shown = report.describe(place)
    # the name of a file may identify a patient: it is in the caption for whoever looks, and no text of the image
    what = escape(f"{shown['site']}, {shown['split']}, {shown['class']}", quote=True)
    caption = f"<figcaption>{what}: {escape(str(shown['image']).rsplit('/', 1)[-1])}</figcaption>"
    if not report.opened:
        return f"<figure>{caption}</figure>"
    try:
        image = report.sites.splits[place.site][place.split].source.load(place.row)
    except DataError as error:
        return f"<figure>{escape(str(error))}</figure>"
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.BICUBIC)
    encoded = BytesIO()
    image.save(encoded, "JPEG", quality=80)
    data = base64.b64encode(encoded.getvalue()).decode()
    return f'<figure><img alt="{what}" src="data:image/jpeg;base64,{data}">{caption}</figure>'
