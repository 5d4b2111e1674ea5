"""Which engine and font a LaTeX file names for the letters of its names."""

import pytest

from pfedst.reporting.latex import latex, latex_document
from pfedst.reporting.report import Report
from pfedst.reporting.report_table import Cell, ReportTable


@pytest.mark.parametrize(
    ("name", "font"),
    [
        ("\u5317\u4eac\u533b\u9662", "Noto Serif CJK SC"),
        ("\uc11c\uc6b8", "Noto Serif CJK KR"),
        ("\u041c\u043e\u0441\u043a\u0432\u0430", "Noto Serif"),
        ("\u0127al", "Noto Serif"),
        ("K\u00f6ln \u0141\u00f3d\u017a \u0218ibiu \u201cx\u201d \u03b1 \u2013 \u20ac", None),
    ],
    ids=["Chinese", "Korean", "Russian", "Maltese", "Latin"],
)
def test_latex_names_the_engine_that_has_the_letters(name, font) -> None:
    """pdflatex stops at letters that it does not have; the file said nothing of it."""
    table = ReportTable("results", "T", "c", ("row", name), ((Cell("x"), Cell("1", 1.0)),))
    document = latex_document(Report("x", (), (), (table,)))
    for text in (document, latex(table)):
        assert name in text.replace("$\\alpha$", "\u03b1").replace("\\textendash{}", "\u2013")
        assert ("lualatex or xelatex" in text) == (font is not None)
    assert ("fontspec}" in document, "fontenc" in document) == (font is not None, font is None)
    assert document.startswith("% !TeX program = lualatex\n" if font else "\\documentclass")
    assert font is None or f"\\IfFontExistsTF{{{font}}}{{\\setmainfont{{{font}}}}}" in document
