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
:root { color-scheme: light dark; --page: #fff; --text: #222; --soft: #555; --line: #ddd; --block: #f8f8f8;
  --none: #fdf3d7; --link: #0550ae; --error: #b2182b; --warning: #b35806; --note: #2166ac; }
@media (prefers-color-scheme: dark) { :root { --page: #15191f; --text: #e6e9ed; --soft: #a3adb8; --line: #3a424c;
  --block: #1d232b; --none: #3a2f10; --link: #79b8ff; --error: #f4777f; --warning: #f0a24b; --note: #79b8ff; } }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem;
  background: var(--page); color: var(--text); overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.scroll { overflow-x: auto; max-width: 100%; } .scroll:focus-visible { outline: 2px solid var(--link); }
table { border-collapse: collapse; margin: .5rem 0; overflow-wrap: normal; }
caption { text-align: left; color: var(--soft); padding-bottom: .3rem; min-width: min(30rem, 90vw); }
th, td { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid var(--line); }
th:first-child { text-align: left; } tbody th { font-weight: 500; }
td.none { background: var(--none); font-weight: 600; }
.finding { border-left: .4rem solid; padding: .3rem 1rem; margin: 1rem 0; background: var(--block); }
.error { border-color: var(--error); } .warning { border-color: var(--warning); } .note { border-color: var(--note); }
.finding b { text-transform: uppercase; font-size: .8rem; letter-spacing: .05em; } .remedy { color: var(--soft); }
.together { display: inline-flex; flex-wrap: wrap; gap: .3rem; border: 1px solid var(--line); padding: .3rem;
  margin: .2rem; background: var(--page); }
figure { margin: 0; width: 8.5rem; font-size: .75rem; color: var(--soft); }
img { width: 8rem; height: 8rem; object-fit: contain; background: #eee; }
"""


def page(report: AuditReport) -> str:
    """Return the HTML page."""
    counted = "".join(_table(number, plain) for number, plain in enumerate(tables(report), 1))
    findings = "\n".join(_finding(report, finding) for finding in report.findings)
    opened = "every image was opened" if report.opened else "tables alone: no image was opened"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>Data audit</title>'
        f"<style>{STYLE}</style></head>\n<body><main><h1>Data audit</h1>\n"
        f"<p>{escape(report.label)}; {opened}.</p>\n<p><strong>{escape(report.headline())}</strong></p>\n"
        f"<h2>Findings</h2>\n{findings}\n<h2>Tables</h2>\n{counted}</main></body></html>\n"
    )


def _table(number: int, plain: PlainTable) -> str:
    # a heading without text is a corner, not a heading
    head = "".join(f'<th scope="col">{escape(text)}</th>' if text else "<td></td>" for text in plain.headings)
    body = "".join(f"<tr>{''.join(_cell(place, text) for place, text in enumerate(row))}</tr>\n" for row in plain.rows)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-labelledby="table-{number}"><table>'
        f'<caption id="table-{number}">{escape(plain.title)}</caption>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>\n"
    )


def _cell(place: int, text: str) -> str:
    if not place:
        return f'<th scope="row">{escape(text)}</th>'
    return f"<td>{escape(text)}</td>" if text else '<td class="none">-</td>'


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
