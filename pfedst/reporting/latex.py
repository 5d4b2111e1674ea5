"""Render a report as LaTeX: tables for a paper, and a document that names the engine it needs."""

from __future__ import annotations

import re
import unicodedata

from pfedst.reporting.formats import captioned, column_texts, plain, right_aligned
from pfedst.reporting.report import Report
from pfedst.reporting.report_table import Cell, ReportTable

LAST_OF_T1 = 0x17F
"""Up to this code point pdflatex has the letters, with the T1 encoding."""
NOT_IN_T1 = "\u0126\u0127\u0138\u013f\u0140\u0149\u0166\u0167\u017f"
T1_OTHERS = "\u0218\u0219\u021a\u021b\u2018\u2019\u201a\u201c\u201d\u201e\u2020\u2021\u2022\u2026\u2030\u20ac\u2122"
SCRIPT_FONTS = (
    (0x0590, 0x05FF, "Noto Serif Hebrew"),
    (0x0600, 0x06FF, "Noto Naskh Arabic"),
    (0x0900, 0x097F, "Noto Serif Devanagari"),
    (0x0980, 0x09FF, "Noto Serif Bengali"),
    (0x0B80, 0x0BFF, "Noto Serif Tamil"),
    (0x0E00, 0x0E7F, "Noto Serif Thai"),
    (0x1100, 0x11FF, "Noto Serif CJK KR"),
    (0xAC00, 0xD7AF, "Noto Serif CJK KR"),
    (0x3040, 0x30FF, "Noto Serif CJK JP"),
    (0x2E80, 0x9FFF, "Noto Serif CJK SC"),
    (0xF900, 0xFAFF, "Noto Serif CJK SC"),
    (0x20000, 0x3FFFF, "Noto Serif CJK SC"),
)
"""First and last code point of a script, and a free font with its letters; Noto Serif has the European ones."""
LATEX_WIDE = 80  # approximate number of characters in a line of a page

_LATEX = {c: f"\\{c}" for c in "%_&#${}"}
_LATEX |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_LATEX |= {"`": r"\textasciigrave{}", "|": r"\textbar{}", "–": r"\textendash{}", "—": r"\textemdash{}"}  # noqa: RUF001
_LATEX |= {"<": "$<$", ">": "$>$", "−": "$-$", "…": r"\ldots{}"}  # noqa: RUF001
_SYMBOLS = {"±": "pm", "×": "times", "·": "cdot", "≤": "leq", "≥": "geq", "≠": "neq", "≈": "approx"}  # noqa: RUF001
_SYMBOLS |= {"∞": "infty", "→": "to", "↑": "uparrow", "↓": "downarrow", "∆": "Delta", "Δ": "Delta", "µ": "mu"}
# pdflatex has no Greek letters of its own
_SYMBOLS |= {"λ": "lambda"} | {c: unicodedata.name(c).split()[-1].lower() for c in "αβγδεηθκμπρστφχω"}
_ESCAPES = str.maketrans(_LATEX | {symbol: f"$\\{name}$" for symbol, name in _SYMBOLS.items()})


def latex_text(text: str) -> str:
    """Escape a text for LaTeX. Letters of other alphabets are kept."""
    escaped = plain(text).translate(_ESCAPES)
    escaped = re.sub(r"([-,'])(?=\1)", r"\1{}", escaped)  # otherwise LaTeX merges two of them into another character
    return f"{{}}{escaped}" if escaped[:1] in ("[", "*") else escaped  # after \\ these would be read as an option


def latex(table: ReportTable) -> str:
    """Render one table for a paper. Needs the package booktabs, and graphicx if the table is wide.

    Comments above it name the engine if a name has letters that pdflatex does not know.
    """
    text = _latex_table(table)
    return "".join(f"% {line}\n" for line in _engine_lines(text)) + text


def _latex_table(table: ReportTable) -> str:
    rows = [" & ".join(_latex_cell(cell) for cell in row) for row in table.rows]
    lines = [
        rf"\begin{{tabular}}{{{''.join('r' if r else 'l' for r in right_aligned(table))}}}",
        r"\toprule",
        " & ".join(latex_text(heading) for heading in table.headings) + r" \\",
        r"\midrule",
        *(rf"{row} \\" for row in rows),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    if _latex_width(table) > LATEX_WIDE:  # shrinks it to the line, and never stretches it
        lines = [r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%", *lines[:-1], lines[-1] + "}"]
    caption = latex_text(f"{table.title.rstrip('. ')}. {captioned(table)}")
    label = re.sub(r"[^A-Za-z0-9]+", "-", table.name).strip("-")
    begin = [r"\begin{table}[!htbp]", r"\centering", rf"\caption{{{caption}}}"]
    return "\n".join([*begin, rf"\label{{tab:{label}}}", *lines, r"\end{table}"]) + "\n"


def _latex_cell(cell: Cell) -> str:
    text = latex_text(cell.text)
    if cell.value is not None:
        text = re.sub(r"(?<![\w$-])-(?=[\d.])", "$-$", text)  # a minus, not a hyphen
    if not text or not cell.mark:
        return text
    return rf"\textbf{{{text}}}" if cell.mark == "best" else rf"\underline{{{text}}}"


def _latex_width(table: ReportTable) -> int:
    return sum(max(len(text) for text in column_texts(table, i)) + 2 for i in range(len(table.headings)))


def beyond_t1(text: str) -> str:
    """Return the characters of a text that pdflatex cannot set: those outside T1."""
    known = {*map(chr, range(LAST_OF_T1 + 1)), *T1_OTHERS} - {*NOT_IN_T1}
    return "".join(sorted({*text} - known))


def _engine_lines(text: str) -> list[str]:
    """Return comments that name the engine a text needs; none if pdflatex is enough."""
    letters = beyond_t1(text)
    if not letters:
        return []
    shown = letters if len(letters) <= 20 else f"{letters[:20]} and {len(letters) - 20} more"
    return [
        f"pdflatex has no letters such as {shown}",
        "compile with lualatex or xelatex, the package fontspec, and a font that has them (see report.tex)",
    ]


def _fonts(text: str) -> list[str]:
    """Return the preamble for the letters of a text: T1 for pdflatex, or fontspec with the first font that is there."""
    lines = _engine_lines(text)
    if not lines:
        return [r"\usepackage[T1]{fontenc}"]
    fonts = [font for first, last, font in SCRIPT_FONTS if any(first <= ord(c) <= last for c in beyond_t1(text))]
    comments = [f"% {line}" for line in lines]
    comments += ["% the first of these fonts that is installed is used; name another one with \\setmainfont if none is"]
    chosen = ""
    for font in reversed(list(dict.fromkeys([*fonts, "Noto Serif", "FreeSerif", "DejaVu Serif"]))):
        chosen = rf"\IfFontExistsTF{{{font}}}{{\setmainfont{{{font}}}}}{{{chosen}}}"
    return [*comments, r"\usepackage{fontspec}", chosen]


def latex_document(report: Report) -> str:
    """Render all tables as a document that compiles by itself.

    The first lines name the engine if a name has letters that pdflatex does not know.
    """
    body = _latex_body(report)
    text = "\n".join(body)
    engine = ["% !TeX program = lualatex"] if beyond_t1(text) else []
    lines = [*engine, r"\documentclass{article}", *_fonts(text), r"\usepackage[margin=2cm]{geometry}"]
    lines += [r"\usepackage{booktabs}", r"\usepackage{graphicx}", r"\begin{document}"]
    return "\n".join([*lines, *body, r"\end{document}"]) + "\n"


def _latex_body(report: Report) -> list[str]:
    lines = [rf"\section*{{{latex_text(report.title)}}}"]
    for items, style in ((report.notes, r"\textbf{%s}"), (report.protocol, "%s")):
        if items:
            shown = [rf"\item {style.replace('%s', latex_text(item))}" for item in items]
            lines += [r"\begin{itemize}", *shown, r"\end{itemize}"]
    for table in report.tables:
        lines += ["", _latex_table(table)]
    return lines
