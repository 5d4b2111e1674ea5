"""Render a report for the terminal and as Markdown, CSV and JSON.

All formats use the same cells and need neither files nor the clock.
"""

from __future__ import annotations

import csv
import math
import re
import unicodedata
from io import StringIO
from typing import Any

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pfedst.reporting.report import Report
from pfedst.reporting.report_table import Cell, ReportTable

LEGEND = "Best in bold, second best underlined."
STYLES = {"": "", "best": "bold", "second": "underline"}
DASHES = ("", "-", "\N{EN DASH}", "\N{EM DASH}")  # texts of empty cells
SAID_FIRST = ("results", "priors", "tests", "claims", "warnings")
"""Names of the tables that a terminal shows: how good, at which class frequencies, whether it can be claimed."""
WORDS = 24  # terminal columns for words before they wrap
BORDER = 3  # terminal columns between two table columns: a line and two spaces


def plain(text: str) -> str:
    """Return a text on one line. Characters that cannot be printed, as in a folder name, become question marks."""
    shown = (c if c.isspace() or unicodedata.category(c) not in ("Cc", "Cs") else "?" for c in text)
    return " ".join("".join(shown).split())


def number(value: float | None) -> str:
    """Return a number with all its digits, or an empty text if it is not defined."""
    if value is None or math.isnan(value):
        return ""
    return repr(value if isinstance(value, int) else float(value))  # float: NumPy's repr names its type


def is_numeric(table: ReportTable, column: int) -> bool:
    """Return True if a column holds a number."""
    return any(number(row[column].value) for row in table.rows)


def right_aligned(table: ReportTable) -> list[bool]:
    """Return for each column whether it is right-aligned: columns of numbers except the first, which names the row."""
    return [column > 0 and is_numeric(table, column) for column in range(len(table.headings))]


def is_marked(table: ReportTable) -> bool:
    """Return True if a cell of the table is marked as best or second best."""
    return any(cell.mark for row in table.rows for cell in row)


def captioned(table: ReportTable) -> str:
    """Return the caption, with the legend of marks if there are any."""
    return plain(f"{table.caption} {LEGEND if is_marked(table) else ''}")


# the terminal


def rich_report(report: Report, width: int = 120) -> RenderableType:
    """Render what a report says first for a terminal of `width` columns, and the titles of its other tables.

    A wider table is split into parts, each with the names of its rows.
    """
    shown: list[RenderableType] = [Text(plain(report.title), style="bold")]
    shown += [Text(f"! {plain(note)}", style="bold yellow") for note in report.notes]
    shown += [Text(plain(line)) for line in report.protocol]
    for table in report.tables:
        if table.name in SAID_FIRST:
            shown += ["", rich_table(table, width)]
    if others := [plain(table.title) for table in report.tables if table.name not in SAID_FIRST]:
        shown += ["", Text(f"in the report alone: {'; '.join(others)}")]
    return Group(*shown)


def rich_table(table: ReportTable, width: int = 120) -> RenderableType:
    """Render one table with its caption for a terminal of `width` columns."""
    blocks = _blocks(table, width)
    shown: list[RenderableType] = [
        _rich_block(table, block, width, f" ({i} of {len(blocks)})") for i, block in enumerate(blocks, 1)
    ]
    if caption := captioned(table):
        shown.append(Text(caption, style="dim"))
    return Group(*shown)


def _least(table: ReportTable, column: int, width: int) -> int:
    """Return the minimum number of terminal columns for a readable table column. Two columns always fit."""
    heading, *texts = column_texts(table, column)
    word = max((cell_len(word) for word in heading.split()), default=0)
    longest = max((cell_len(text) for text in texts), default=0)
    least = max(word, longest if right_aligned(table)[column] else min(longest, WORDS))
    return max(1, min(least, (width - 1) // 2 - BORDER))


def _blocks(table: ReportTable, width: int) -> list[list[int]]:
    """Split the columns of a table into blocks that fit the width. The first column is in every block."""
    cost = [_least(table, column, width) + BORDER for column in range(len(table.headings))]
    blocks = [[0]]
    for column in range(1, len(cost)):
        if len(blocks[-1]) > 1 and 1 + sum(cost[c] for c in [*blocks[-1], column]) > width:
            blocks.append([0])
        blocks[-1].append(column)
    return blocks


def _widths(table: ReportTable, columns: list[int], width: int) -> list[int]:
    """Return the width of each column: its minimum, plus a share of the spare width if it can use more."""
    wanted = [max(cell_len(text) for text in column_texts(table, column)) for column in columns]
    widths = [_least(table, column, width) for column in columns]
    spare = width - 1 - sum(w + BORDER for w in widths)
    while spare > 0 and (short := [i for i, w in enumerate(widths) if w < wanted[i]]):
        for i in short[:spare]:
            widths[i] += 1
        spare -= len(short)
    return widths


def column_texts(table: ReportTable, column: int) -> list[str]:
    """Return the heading and the cells of a column."""
    return [plain(text) for text in (table.headings[column], *(row[column].text for row in table.rows))]


def _rich_block(table: ReportTable, columns: list[int], width: int, part: str) -> Table:
    part = "" if len(columns) == len(table.headings) else part
    shown = Table(title=Text(plain(table.title) + part), title_justify="left")
    for column, its_width in zip(columns, _widths(table, columns, width), strict=True):
        shown.add_column(
            Text(plain(table.headings[column])),
            justify="right" if right_aligned(table)[column] else "left",
            width=its_width,
            overflow="fold",  # never an ellipsis: a number with a missing digit would be wrong
        )
    for row in table.rows:
        cells = (row[column] for column in columns)  # styled below: a style of the whole cell would underline padding
        shown.add_row(*(Text.assemble((plain(cell.text), STYLES[cell.mark])) for cell in cells))
    return shown


# Markdown

_MARKDOWN = re.compile(r"[\\`*|~$]|<(?=[A-Za-z/!?])|](?=[(\[:])|&(?=[#\w])|(?<![^\W_])_|_(?![^\W_])|(?<!\S)#")


def markdown(report: Report) -> str:
    """Render a report as Markdown with tables of GitHub."""
    parts = [f"# {_markdown(report.title)}"]
    if report.notes:
        parts.append("\n>\n".join(["> **Notes**", "\n".join(f"> - {_markdown_line(note)}" for note in report.notes)]))
    if report.protocol:
        parts.append("\n".join(f"- {_markdown_line(line)}" for line in report.protocol))
    for table in report.tables:
        parts += [f"## {_markdown(table.title)}", markdown_table(table), _markdown_line(captioned(table))]
    return "\n\n".join(part for part in parts if part) + "\n"


def _markdown(text: str) -> str:
    return _MARKDOWN.sub(r"\\\g<0>", plain(text))


def _markdown_line(text: str) -> str:
    """Escape a line, also at its start, so that it does not become a list, a heading or a quotation."""
    return re.sub(r"^(\d*)([-+#=>.)\[])", r"\1\\\2", _markdown(text))


def _markdown_cell(cell: Cell) -> str:
    text = _markdown(cell.text)
    if not text or not cell.mark:
        return text
    return f"**{text}**" if cell.mark == "best" else f"<u>{text}</u>"


def markdown_table(table: ReportTable) -> str:
    """Render one table as Markdown of GitHub, without its title."""
    right = right_aligned(table)
    lines = [[_markdown(heading) for heading in table.headings]]
    lines += [[_markdown_cell(cell) for cell in row] for row in table.rows]
    widths = [max(3, *(len(line[column]) for line in lines)) for column in range(len(right))]
    rule = ["-" * (w - 1) + ":" if r else "-" * w for w, r in zip(widths, right, strict=True)]
    padded = [
        [text.rjust(w) if r else text.ljust(w) for text, w, r in zip(line, widths, right, strict=True)]
        for line in (lines[0], rule, *lines[1:])
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)


# for programs


def csv_text(table: ReportTable) -> str:
    """Render one table as CSV: numbers with all digits, standard deviations over seeds in separate columns.

    Missing values are empty. A column of numbers holds only numbers; the other formats say why one is not defined.
    """
    columns = range(len(table.headings))
    spread = [any(number(row[column].spread) for row in table.rows) for column in columns]
    numeric = [is_numeric(table, column) for column in columns]
    file = StringIO()
    writer = csv.writer(file, lineterminator="\n")
    headings = [_csv_words(heading) for heading in table.headings]
    writer.writerow([text for i, h in enumerate(headings) for text in ([h, f"{h} std"] if spread[i] else [h])])
    for row in table.rows:
        line: list[str] = []
        for column, cell in enumerate(row):
            words = column == 0 or not numeric[column]
            line.append(number(cell.value) or (_csv_words(cell.text) if words else ""))
            line += [number(cell.spread)] if spread[column] else []
        writer.writerow(line)
    return file.getvalue()


def _csv_words(text: str) -> str:
    """Return words that a spreadsheet does not interpret as a formula. A dash becomes an empty text."""
    if text.strip() in DASHES:
        return ""
    text = text.replace("\r\n", "\n").replace("\r", "\n").encode(errors="replace").decode()
    formula = text.lstrip()[:1] in ("=", "+", "-", "@") or text[:1] in ("\t", "\n")
    return f"'{text}" if formula else text


def report_json(report: Report) -> dict[str, Any]:
    """Return the whole report for JSON. A number that is not finite becomes null; its text shows the value."""
    return {
        "title": report.title,
        "protocol": list(report.protocol),
        "notes": list(report.notes),
        "tables": [
            {
                "name": table.name,
                "title": table.title,
                "caption": table.caption,
                "headings": list(table.headings),
                "rows": [[_cell_json(cell) for cell in row] for row in table.rows],
            }
            for table in report.tables
        ],
    }


def _cell_json(cell: Cell) -> dict[str, Any]:
    def finite(value: float | None) -> float | None:
        return None if value is None or not math.isfinite(value) else float(value)

    return {"text": cell.text, "value": finite(cell.value), "spread": finite(cell.spread), "mark": cell.mark}
