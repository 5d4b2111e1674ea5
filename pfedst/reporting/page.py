"""A report as one HTML page that a browser opens from disk, without network; it can be read without its script."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from pfedst.reporting.formats import DASHES, is_marked, is_numeric, number, plain, right_aligned
from pfedst.reporting.report import Report
from pfedst.reporting.report_table import Cell, ReportTable

WIDE = 9  # minimum number of columns of a table that is printed in landscape
# with this policy a browser loads nothing from elsewhere, whatever a figure or a name holds
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
STYLE = """
:root { color-scheme: light dark; --page: #fff; --text: #1f2328; --soft: #59636e; --line: #d1d9e0; --stripe: #f6f8fa;
  --best: #dceafa; --link: #0550ae; --note: #fff3cd; --edge: #bf8700; --shade: rgba(0, 0, 0, .22); }
@media (prefers-color-scheme: dark) { :root { --page: #15191f; --text: #e6e9ed; --soft: #a3adb8; --line: #3a424c;
  --stripe: #1d232b; --best: #1d3f66; --link: #79b8ff; --note: #3a2f10; --edge: #d9a520; --shade: rgba(0, 0, 0, .8); } }
* { box-sizing: border-box; }
body { font: 16px/1.55 system-ui, -apple-system, "Segoe UI", "Liberation Sans", sans-serif; background: var(--page);
  color: var(--text); margin: 0 auto; padding: 2rem 1.5rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 1.2rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.8rem 0 .4rem; line-height: 1.3; overflow-wrap: anywhere; }
p, li { max-width: 50rem; overflow-wrap: anywhere; } p, ul { margin: .4rem 0; } ul { padding-left: 1.3rem; }
a { color: var(--link); }
.skip { position: absolute; left: -100vw; background: var(--page); padding: .5rem 1rem; z-index: 2; }
.skip:focus { left: .5rem; top: .5rem; } main:focus { outline: none; }
.caption, .legend, figcaption { color: var(--soft); font-size: .92rem; }
.notes { background: var(--note); border: 1px solid var(--edge); border-left-width: .45rem; border-radius: .3rem;
  padding: .7rem 1.1rem; margin: 0 0 1.5rem; }
.notes h2 { font-size: 1rem; margin: 0; } .notes li { font-weight: 600; max-width: none; }
nav { border-bottom: 1px solid var(--line); padding-bottom: 1rem; } nav h2 { font-size: 1rem; margin: 0; }
nav ul { list-style: none; padding: 0; columns: 20rem auto; column-gap: 2rem; max-width: none; }
nav li { break-inside: avoid; padding: .1rem 0; }
.scroll { overflow-x: auto; margin: .7rem 0; max-width: 100%; width: fit-content; background:
  linear-gradient(to left, var(--page) 40%, transparent) right / 2rem 100% no-repeat local,
  linear-gradient(to left, var(--shade), transparent) right / .7rem 100% no-repeat scroll; }
.scroll:focus-visible, button:focus-visible, a:focus-visible { outline: 2px solid var(--link); outline-offset: 1px; }
table { border-collapse: separate; border-spacing: 0; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .38rem .75rem; border-bottom: 1px solid var(--line); vertical-align: baseline;
  min-width: 3.5rem; max-width: 26rem; }
thead th { border-bottom: 2px solid var(--soft); vertical-align: bottom; line-height: 1.3; }
thead th, tbody th { font-weight: 600; } tbody th { font-weight: 500; overflow-wrap: anywhere; }
th.right, td.right { text-align: right; } td.right { white-space: nowrap; }
tr > th:first-child { position: sticky; left: 0; z-index: 1; background: var(--page);
  border-right: 1px solid var(--line); }
tbody tr:hover > * { background: var(--stripe); }
td.best, tbody tr:hover > td.best, .key { background: var(--best); } strong { font-weight: 750; }
.key { padding: 0 .35rem; border-radius: .2rem; }
u { text-decoration: underline; text-decoration-thickness: 2px; text-underline-offset: 3px; }
th button { font: inherit; color: inherit; background: none; border: 0; padding: 0 1em 0 0; cursor: pointer;
  text-align: inherit; position: relative; }
th.right button { padding: 0 0 0 1em; }
th button:hover { color: var(--link); }
th button::after { content: "\\2195"; position: absolute; right: 0; bottom: 0; font-size: .8em; color: var(--soft); }
th.right button::after { right: auto; left: 0; }
th[aria-sort] button::after { color: var(--link); }
th[aria-sort=ascending] button::after { content: "\\25B2"; }
th[aria-sort=descending] button::after { content: "\\25BC"; }
.hint { display: none; } .sortable .hint { display: inline; }
figure { margin: 1rem 0; max-width: 78rem; }
.scroll.drawing { width: 100%; background: #fff; border: 1px solid var(--line); border-radius: .3rem; padding: .5rem; }
.drawing svg { display: block; width: 100%; min-width: 42rem; height: auto; }
figcaption { margin-top: .5rem; max-width: 50rem; }
@media (max-width: 40rem) { body { padding: 1rem .9rem 3rem; font-size: 15px; } h1 { font-size: 1.35rem; }
  tr > th:first-child { max-width: 8.5rem; min-width: 6rem; } th, td { padding: .35rem .5rem; } }
@page { margin: 14mm; } @page wide { size: landscape; }
@media print { :root { font-size: 10pt; color-scheme: light; --page: #fff; --text: #000; --soft: #444; --line: #bbb;
  --best: #e4e4e4; --note: #fff; --edge: #000; --link: #000; --shade: transparent; }
  body { padding: 0; font-size: 10pt; }
  .scroll { overflow: visible; } .drawing svg { min-width: 0; } .sortable .hint { display: none; }
  tr > th:first-child { position: static; }
  th button::after { display: none; } th button, th.right button { padding: 0; }
  h2, .caption { break-after: avoid; } tr, figure, .notes { break-inside: avoid; }
  .wide { page: wide; } .wide table { font-size: 6.5pt; }
  .wide th, .wide td { padding: .25rem; min-width: 0 !important; }
  td.best, .key { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""
# headings become buttons, which can be reached by keyboard; a third press restores the order of the report
SCRIPT = """
"use strict";
const next = { none: "ascending", ascending: "descending", descending: "none" };
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0], given = [...body.rows], heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button"), numeric = head.hasAttribute("data-numeric");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    const key = (row) => row.cells[column].dataset.value;
    const compare = (a, b) => numeric ? a - b : a.localeCompare(b, "en", { numeric: true });
    head.addEventListener("click", () => {
      const order = next[head.getAttribute("aria-sort") || "none"];
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      if (order !== "none") head.setAttribute("aria-sort", order);
      const known = given.filter((row) => key(row) !== undefined);
      const missing = given.filter((row) => key(row) === undefined);
      const sign = order === "ascending" ? 1 : -1;
      known.sort((a, b) => sign * compare(key(a), key(b)));
      body.append(...(order === "none" ? given : [...known, ...missing]));
    });
  });
}
document.documentElement.classList.add("sortable");
"""


class PageFigure(NamedTuple):
    """A figure of a page.

    Attributes:
        title: one line.
        caption: sentences that describe the content and the protocol.
        svg: an `svg` element that is safe within a page and names itself, see `figures.svg_text`.
    """

    title: str
    caption: str
    svg: str


def html_page(report: Report, figures: Sequence[PageFigure] = ()) -> str:
    """Render the page."""
    names = anchors([table.name for table in report.tables])
    parts = [
        f"<h1>{_text(report.title)}</h1>",
        _list("notes", "Read this first", report.notes),
        _contents(report, names, [figure.title for figure in figures]),
        _list("protocol", "What the numbers mean", report.protocol),
        _legend(report),
        *(_table(table, name) for table, name in zip(report.tables, names, strict=True)),
        *(_figure(index, figure) for index, figure in enumerate(figures, 1)),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(report.title)}</title>\n<style>{STYLE}</style></head>\n<body>\n"
        '<a class="skip" href="#main">Skip to the content</a>\n<main id="main" tabindex="-1">\n'
        + "\n".join(part for part in parts if part)
        + f"\n</main>\n<script>{SCRIPT}</script>\n</body></html>\n"
    )


def anchors(names: Sequence[str]) -> list[str]:
    """Return an id for each table, made of its name, that no other part of the page has."""
    taken = {"main", "notes", "protocol", "contents", "legend"}
    ids = []
    for name in names:
        stem = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "table"
        stem = f"table-{stem}" if stem.startswith("figure") or not stem[0].isalpha() else stem
        tried, count = stem, 1
        while tried in taken or f"{tried}-caption" in taken:
            count += 1
            tried = f"{stem}-{count}"
        taken |= {tried, f"{tried}-caption"}
        ids.append(tried)
    return ids


def _text(text: str) -> str:
    return escape(plain(text), quote=True)


def _list(name: str, heading: str, lines: Sequence[str]) -> str:
    if not lines:
        return ""
    items = "".join(f"<li>{_text(line)}</li>\n" for line in lines)
    return f'<section id="{name}" class="{name}"><h2>{heading}</h2>\n<ul>{items}</ul></section>'


def _contents(report: Report, names: Sequence[str], figures: Sequence[str]) -> str:
    links = [("protocol", "What the numbers mean")] if report.protocol else []
    links += [(name, table.title) for name, table in zip(names, report.tables, strict=True)]
    links += [(f"figure-{index}", f"Figure {index}: {title}") for index, title in enumerate(figures, 1)]
    items = "".join(f'<li><a href="#{name}">{_text(title)}</a></li>\n' for name, title in links)
    return f'<nav id="contents" aria-label="Contents"><h2>Contents</h2>\n<ul>{items}</ul></nav>' if links else ""


def _legend(report: Report) -> str:
    if not report.tables:
        return ""
    marks = (
        'In a column the <strong class="key">best</strong> is bold and shaded, the <u>second best</u> is underlined. '
        if any(is_marked(table) for table in report.tables)
        else ""
    )
    hint = "Click a heading to sort its table: ascending, descending, original order. Undefined values stay last."
    return f'<p class="legend" id="legend">{marks}<span class="hint">{hint}</span></p>'


def _table(table: ReportTable, name: str) -> str:
    right = right_aligned(table)
    numeric = [is_numeric(table, column) for column in range(len(right))]
    longest = max((len(row[0].text) for row in table.rows), default=0)
    room = f' style="min-width: min({longest + 2}ch, 16rem, 32vw)"'  # otherwise row names wrap before numbers
    head = "".join(
        f'<th scope="col"{_class("right" if r else "")}{" data-numeric" if n else ""}{"" if i else room}>'
        f"{_text(heading)}</th>"
        for i, (heading, r, n) in enumerate(zip(table.headings, right, numeric, strict=True))
    )
    rows = "".join(
        "<tr>" + "".join(_cell(cell, i == 0, right[i], numeric[i]) for i, cell in enumerate(row)) + "</tr>\n"
        for row in table.rows
    )
    wide = " wide" if len(right) >= WIDE else ""
    return (
        f'<section class="table{wide}"><h2 id="{name}">{_text(table.title)}</h2>\n'
        f'<p class="caption" id="{name}-caption">{_text(table.caption)}</p>\n'
        f'<div class="scroll" tabindex="0" role="region" aria-labelledby="{name}">'
        f'<table aria-labelledby="{name}" aria-describedby="{name}-caption">\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody></table></div></section>"
    )


def _cell(cell: Cell, names_row: bool, right: bool, numeric: bool) -> str:
    text = _text(cell.text)
    if cell.mark:
        text = f"<strong>{text}</strong>" if cell.mark == "best" else f"<u>{text}</u>"
    value = _sorted_by(cell, numeric)
    data = "" if value is None else f' data-value="{_text(value)}"'
    shown = _class(" ".join(word for word in ("right" if right else "", cell.mark) if word)) + data
    return f'<th scope="row"{shown}>{text}</th>' if names_row else f"<td{shown}>{text}</td>"


def _sorted_by(cell: Cell, numeric: bool) -> str | None:
    """Return the sort key of a cell, or None if the cell is empty."""
    if not numeric:
        return None if cell.text.strip() in DASHES else cell.text
    if cell.value is not None and math.isinf(cell.value):
        return "Infinity" if cell.value > 0 else "-Infinity"  # as a script reads it
    return number(cell.value) or None


def _class(names: str) -> str:
    return f' class="{names}"' if names else ""


def _figure(index: int, figure: PageFigure) -> str:
    """Place a figure into the page itself, so that its letters can be found, selected and copied."""
    name = f"figure-{index}"
    return (
        f'<section><h2 id="{name}">Figure {index}: {_text(figure.title)}</h2>\n'
        f'<figure><div class="scroll drawing" tabindex="0" role="region" aria-labelledby="{name}">{figure.svg}</div>\n'
        f"<figcaption>{_text(figure.caption)}</figcaption></figure></section>"
    )
