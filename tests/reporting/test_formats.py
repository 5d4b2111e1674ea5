"""Formats of a report against strings written by hand, and what must hold for any text in it."""

import json
import math
import re
import shutil
import subprocess
from io import StringIO

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.console import Console

from pfedst.reporting.formats import (
    DASHES,
    LEGEND,
    csv_text,
    markdown,
    plain,
    report_json,
    rich_report,
)
from pfedst.reporting.latex import latex, latex_document, latex_text
from pfedst.reporting.report import Report
from pfedst.reporting.report_table import Cell, ReportTable

TABLE = ReportTable(
    name="results",
    title="Results",
    caption="Means over 3 seeds.",
    headings=("method", "site_1, %", "note"),
    rows=(
        (Cell("A|B"), Cell("90.0 ± 1.2", 0.9, 0.012, "best"), Cell("50 % & more")),
        (Cell("C_"), Cell("-2.5", -0.1 - 0.2, None, "second"), Cell("-")),
        (Cell("=D"), Cell("-"), Cell("")),
    ),
)
REPORT = Report("demo: 3 methods", ("last round", "# 3 seeds"), ("RANDOM WEIGHTS",), (TABLE,))
TEXTS = st.text(max_size=30)
# what a name of a folder or a message may hold, and every character that a format takes for itself
NASTY = st.text(alphabet=st.sampled_from("a1 .-,'\"\\`*_|~$&#%{}^<>[]()!+=@:;±é\n\t"), max_size=20)
WORDS = st.one_of(TEXTS, NASTY)


def of_texts(*texts: str) -> ReportTable:
    return ReportTable("t", "T", "", tuple(f"h{i}" for i in range(len(texts))), (tuple(Cell(text) for text in texts),))


def shown(report: Report, width: int) -> list[str]:
    file = StringIO()
    Console(width=width, file=file).print(rich_report(report, width), highlight=False)
    return file.getvalue().split("\n")


# Markdown


def test_markdown() -> None:
    assert markdown(REPORT) == (
        "# demo: 3 methods\n\n"
        "> **Notes**\n>\n> - RANDOM WEIGHTS\n\n"
        "- last round\n- \\# 3 seeds\n\n"
        "## Results\n\n"
        "| method |      site_1, % | note        |\n"
        "| ------ | -------------: | ----------- |\n"
        "| A\\|B   | **90.0 ± 1.2** | 50 % & more |\n"
        "| C\\_    |    <u>-2.5</u> | -           |\n"
        "| =D     |              - |             |\n\n"
        f"Means over 3 seeds. {LEGEND}\n"
    )


@settings(deadline=None)  # the machine may be busy
@given(WORDS, WORDS)
def test_markdown_shows_any_text_as_it_is(first: str, second: str) -> None:
    """Read by an independent parser."""
    table = ReportTable("t", first, second, ("h", first), ((Cell(second), Cell(first, 1.0, None, "best")),))
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    tokens = parser.parse(markdown(Report("report", (f"x {first}",), (first,), (table,))))
    texts = ["".join(part.content for part in token.children) for token in tokens if token.type == "inline"]
    texts = [text.removeprefix("<u>").removesuffix("</u>") for text in texts]
    expected = ["report", "Notes", first, f"x {first}", first, "h", first, second, first, f"{second} {LEGEND}"]
    assert [text for text in texts if text] == [plain(text) for text in expected if plain(text)]


# LaTeX


def test_latex() -> None:
    assert latex(TABLE) == (
        "\\begin{table}[!htbp]\n\\centering\n"
        f"\\caption{{Results. Means over 3 seeds. {LEGEND}}}\n\\label{{tab:results}}\n"
        "\\begin{tabular}{lrl}\n\\toprule\n"
        "method & site\\_1, \\% & note \\\\\n\\midrule\n"
        "A\\textbar{}B & \\textbf{90.0 $\\pm$ 1.2} & 50 \\% \\& more \\\\\n"
        "C\\_ & \\underline{$-$2.5} & - \\\\\n"
        "=D & - &  \\\\\n"
        "\\bottomrule\n\\end{tabular}\n\\end{table}\n"
    )


def test_latex_shrinks_a_table_only_if_it_is_wide() -> None:
    wide = of_texts(*["ten digits"] * 12)
    assert "resizebox" not in latex(of_texts(*["ten digits"] * 4))
    assert "\\resizebox{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}{!}{%\n\\begin{tabular}{l" in latex(wide)
    assert "\\end{tabular}}\n\\end{table}" in latex(wide)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a_b 5% #1 $2 {x} R&D", r"a\_b 5\% \#1 \$2 \{x\} R\&D"),
        (r"~^\ `", r"\textasciitilde{}\textasciicircum{}\textbackslash{} \textasciigrave{}"),
        ("p < 0.01 ≥ 2 ± Δ", r"p $<$ 0.01 $\geq$ 2 $\pm$ $\Delta$"),
        ("Zürich, Łódź", "Zürich, Łódź"),
        ("--name", "-{}-name"),
        ("[0, 1]", "{}[0, 1]"),
        ("* all", "{}* all"),
        ("two\n\nlines\x00", "two lines?"),
    ],
)
def test_latex_text(text: str, expected: str) -> None:
    assert latex_text(text) == expected


@settings(deadline=None)  # the machine may be busy
@given(WORDS)
def test_latex_text_holds_no_special_character(text: str) -> None:
    rest = re.sub(r"\\text[a-z]+\{\}|\\ldots\{\}|\$(?:[<>-]|\\[A-Za-z]+)\$|\\[%_&#${}]|\{\}", "", latex_text(text))
    assert not set(rest) & set("%_&#${}~^\\")
    assert not re.search(r"\n|--|''|,,", latex_text(text))


@settings(deadline=None)  # the machine may be busy
@given(st.lists(WORDS, min_size=2, max_size=14), st.sampled_from(["", "best", "second"]))
def test_latex_of_any_text_is_well_formed(texts: list[str], mark: str) -> None:
    row = tuple(Cell(text, 1.0, None, mark) for text in texts)  # type: ignore[arg-type]
    table = ReportTable("t_1 %", texts[0], texts[1], tuple(texts), (row, row))
    document = latex_document(Report(texts[0], tuple(texts), tuple(texts), (table,)))
    bare = re.sub(r"\\\\(?=\n)|\\[{}]", "", document)
    depth = 0
    for character in bare:
        depth += (character == "{") - (character == "}")
        assert depth >= 0
    assert depth == 0
    opened: list[str] = []
    for kind, name in re.findall(r"\\(begin|end)\{([a-z]+)\}", document):
        if kind == "begin":
            opened.append(name)
        else:
            assert opened.pop() == name
    assert not opened
    body = document.split("\\toprule\n")[1].split("\\bottomrule")[0]
    rows = [line for line in body.split("\n") if line and line != "\\midrule"]
    assert [len(re.findall(r"(?<!\\)&", line)) for line in rows] == [len(texts) - 1] * 3
    assert all(line.endswith(" \\\\") and line[0] not in "[*" for line in rows)
    assert "\\label{tab:t-1}" in document


def test_latex_document_names_what_it_needs() -> None:
    document = latex_document(REPORT)
    assert document.startswith("\\documentclass{article}\n")
    assert "\\usepackage{booktabs}" in document
    assert "\\usepackage{graphicx}" in document
    assert "\\item \\textbf{RANDOM WEIGHTS}\n" in document
    assert "\\item \\# 3 seeds\n" in document
    assert document.endswith("\\end{document}\n")


def test_latex_document_compiles(tmp_path) -> None:
    program = next(filter(None, map(shutil.which, ("pdflatex", "tectonic"))), None)
    if program is None:
        pytest.skip("neither pdflatex nor tectonic is installed: LaTeX is checked by its properties alone")
    nasty = of_texts("[a] \\ { } ~ ^ _ % & # $ | < > \" ` '' -- ± Δ λ é", "* b", *["wide enough"] * 10)
    path = tmp_path / "report.tex"
    path.write_text(latex_document(Report("R&D_1", ("[x]",), ("50 %",), (TABLE, nasty))), encoding="utf-8")
    options = ["-halt-on-error", "-interaction=nonstopmode"] if "pdflatex" in program else []
    subprocess.run([program, *options, path.name], cwd=tmp_path, check=True, capture_output=True, timeout=600)
    assert path.with_suffix(".pdf").stat().st_size > 1000


# CSV


def test_csv() -> None:
    assert csv_text(TABLE) == (
        'method,"site_1, %","site_1, % std",note\nA|B,0.9,0.012,50 % & more\nC_,-0.30000000000000004,,\n\'=D,,,\n'
    )


FLOATS = st.floats(allow_nan=False)


@pytest.mark.filterwarnings("ignore:The 'float_precision'")  # from pandas 3 on it is the default
@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.tuples(FLOATS, st.none() | FLOATS), min_size=1, max_size=5))
def test_csv_gives_pandas_every_digit(values: list[tuple[float, float | None]]) -> None:
    rows = tuple((Cell(f"r{i}"), Cell("shown", value, spread)) for i, (value, spread) in enumerate(values))
    frame = pd.read_csv(StringIO(csv_text(ReportTable("t", "", "", ("name", "x"), rows))), float_precision="round_trip")
    assert frame["x"].tolist() == [value for value, _ in values]
    if "x std" in frame:
        told = [None if math.isnan(spread) else spread for spread in frame["x std"]]
        assert told == [spread for _, spread in values]
    else:
        assert all(spread is None for _, spread in values)


def test_csv_of_a_column_of_numbers_holds_nothing_else() -> None:
    rows = ((Cell("a"), Cell("3", 3)), (Cell("b"), Cell("not defined")), (Cell("c"), Cell("nan", float("nan"))))
    assert csv_text(ReportTable("t", "", "", ("name", "x"), rows)) == "name,x\na,3\nb,\nc,\n"


@pytest.mark.parametrize("text", ["=1+1", "+1", "-x", "@SUM(A1)", " =1", "\t=1", "\r=1"])
def test_csv_defuses_formulas(text: str) -> None:
    frame = pd.read_csv(StringIO(csv_text(of_texts("name", text))))
    assert frame["h1"][0].startswith("'")


@settings(deadline=None)  # the machine may be busy
@given(st.text(alphabet=st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=20) | NASTY)
def test_csv_keeps_words(text: str) -> None:
    table = ReportTable("t", "", "", ("name", "x"), ((Cell("row"), Cell(text)),))
    frame = pd.read_csv(StringIO(csv_text(table)), dtype=str, keep_default_na=False)
    given_back = frame["x"][0]
    assert given_back in (text, f"'{text}") or (given_back == "" and text.strip() in DASHES)
    assert given_back.lstrip()[:1] not in ("=", "+", "-", "@") or not given_back.strip()


# JSON


def test_json_holds_everything_but_nan() -> None:
    rows = ((Cell("a"), Cell("x", float("nan"), float("inf"))), (Cell("b"), Cell("1 ± 0", 1.0, 0.0, "best")))
    report = Report("t", ("p",), ("n",), (ReportTable("name", "title", "caption", ("h", "x"), rows),))
    told = json.loads(json.dumps(report_json(report), allow_nan=False))
    assert {key: told[key] for key in ("title", "protocol", "notes")} == {
        "title": "t",
        "protocol": ["p"],
        "notes": ["n"],
    }
    (table,) = told["tables"]
    assert (table["name"], table["title"], table["caption"], table["headings"]) == (
        "name",
        "title",
        "caption",
        ["h", "x"],
    )
    assert table["rows"][0][1] == {"text": "x", "value": None, "spread": None, "mark": ""}
    assert table["rows"][1][1] == {"text": "1 ± 0", "value": 1.0, "spread": 0.0, "mark": "best"}


# the terminal


def test_rich() -> None:
    assert [line.rstrip() for line in shown(REPORT, 60)] == [
        "demo: 3 methods",
        "! RANDOM WEIGHTS",
        "last round",
        "# 3 seeds",
        "",
        "Results",
        "┏━━━━━━━━┳━━━━━━━━━━━━┳━━━━━━━━━━━━━┓",
        "┃ method ┃  site_1, % ┃ note        ┃",
        "┡━━━━━━━━╇━━━━━━━━━━━━╇━━━━━━━━━━━━━┩",
        "│ A|B    │ 90.0 ± 1.2 │ 50 % & more │",
        "│ C_     │       -2.5 │ -           │",
        "│ =D     │          - │             │",
        "└────────┴────────────┴─────────────┘",
        f"Means over 3 seeds. {LEGEND}",
        "",
    ]


def test_rich_marks_with_bold_and_underline() -> None:
    file = StringIO()
    Console(width=80, file=file, force_terminal=True, color_system="standard").print(rich_report(REPORT, 80))
    assert "\x1b[1m90.0 ± 1.2\x1b[0m" in file.getvalue()
    assert "\x1b[4m-2.5\x1b[0m" in file.getvalue()
    assert "\x1b[1;33m! RANDOM WEIGHTS\x1b[0m" in file.getvalue()


@pytest.mark.parametrize("width", [24, 40, 60, 80, 100, 150, 200, 400])
def test_rich_cuts_nothing_off(width: int) -> None:
    """Every number is on a line of its own row, and every border is within the terminal."""
    headings = ("method", *(f"balanced accuracy {i}" for i in range(15)))
    rows = [(Cell(f"m{m}"), *(Cell(f"{m}{c:02}.5 ± 1", 1.0) for c in range(15))) for m in range(3)]
    lines = shown(Report("", (), (), (ReportTable("results", "", "", headings, tuple(rows)),)), width)
    assert all(len(line) <= width for line in lines)
    assert not [line for line in lines if "…" in line]
    for line in lines:
        assert not line.strip() or line.strip()[-1] in "┓┃┩│┘)", line
    if width >= 40:
        for m in range(3):
            row = " ".join(line for line in lines if f"│ m{m} " in line)
            assert re.findall(r"(\d{3})\.5 ± 1 ", row) == [f"{m}{c:02}" for c in range(15)]


@settings(max_examples=30, deadline=None)
@given(WORDS)
def test_rich_takes_any_text(text: str) -> None:
    table = ReportTable("results", text, text, ("h", text), ((Cell(text), Cell(text)),))
    assert shown(Report(text, (text,), (text,), (table,)), 80)


def test_a_terminal_shows_the_first_tables_and_the_titles_of_the_others() -> None:
    tables = [ReportTable(name, name.upper(), "", ("a", "b"), ()) for name in ("results", "cost", "tests", "recall")]
    text = "\n".join(shown(Report("r", (), (), tuple(tables)), 80))
    assert "in the report alone: COST; RECALL" in text
    assert text.index("RESULTS") < text.index("TESTS") < text.index("in the report alone")
    assert "in the report alone" not in "\n".join(shown(Report("r", (), (), tuple(tables[:1])), 80))


def test_an_empty_report() -> None:
    empty = ReportTable("results", "T", "", ("a", "b"), ())
    report = Report("r", (), (), (empty,))
    assert "| a   | b   |\n| --- | --- |\n" in markdown(report)
    assert csv_text(empty) == "a,b\n"
    assert "a & b \\\\\n\\midrule\n\\bottomrule" in latex(empty)
    assert any("┃ a ┃ b ┃" in line for line in shown(report, 80))
