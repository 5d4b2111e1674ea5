"""Names in other alphabets are drawn by another font or numbered; no letter is a box."""

import warnings

import pytest
from matplotlib.font_manager import findfont
from matplotlib.text import Text

from pfedst.reporting.figures import make_figures, svg_text
from pfedst.reporting.figures import names as module
from pfedst.reporting.figures.names import FONT, fonts_for, with_drawable_names
from tests.reporting.small import compared

BEIJING, SEOUL, HAIFA, KIEV = (
    "\u5317\u4eac\u533b\u9662",
    "\uc11c\uc6b8",
    "\u05d7\u05d9\u05e4\u05d4",
    "\u041a\u0438\u0457\u0432",
)


@pytest.fixture
def letters(monkeypatch):
    """Fonts and their letters on a machine whose installed fonts a test chooses; files of other fonts do not count."""
    latin = {chr(code) for code in range(32, 0x530)} | {"\N{HORIZONTAL ELLIPSIS}"} | set(HAIFA)
    found = {FONT: latin}

    class Entry:
        def __init__(self, name) -> None:
            self.name = self.fname = name
            self.style, self.weight = "normal", 400

    class Manager:
        @property
        def ttflist(self):
            return [*map(Entry, found), Entry("Last Resort High-Efficiency")]

    monkeypatch.setattr(module, "fontManager", Manager())
    monkeypatch.setattr(module, "_font_file", lambda font=FONT: font)
    monkeypatch.setattr(module, "_letters", lambda file: found.get(file, {chr(n) for n in range(32, 0x20000)}))
    return found


def of_sites(*sites, **options):
    return compared({"PFedST": {0: dict.fromkeys(sites, 0.5)}}, **options)


def test_an_installed_font_with_the_letters_is_used(letters) -> None:
    letters["Chinese"] = set(BEIJING)
    letters["Some"] = set(BEIJING[:2])
    letters["Korean"] = set(SEOUL)
    made = of_sites(BEIJING, SEOUL, KIEV)
    assert fonts_for(made) == [FONT, "Chinese", "Korean"]
    assert fonts_for(of_sites(KIEV)) == [FONT]
    assert with_drawable_names(made, fonts_for(made)) == (made, "")


def test_names_without_a_font_are_numbered_and_told(letters) -> None:
    made = of_sites("Bonn", BEIJING, HAIFA, "site 3", classes=["x", SEOUL], held_out_sites=[BEIJING])
    fonts = fonts_for(made)
    assert fonts == [FONT], "a font of boxes has no letters"
    shown, told = with_drawable_names(made, fonts)
    assert told == f"No installed font draws some names: site 3' is {HAIFA}, site 4 is {BEIJING}, class 2 is {SEOUL}."
    assert shown.sites == ["Bonn", "site 3", "site 3'", "site 4"]
    assert (shown.classes, shown.held_out) == (["x", "class 2"], ["site 4"])
    run = shown.rows[0].first
    assert (
        {record["client"] for record in run.records}
        == set(run.class_metrics)
        == set(run.calibration)
        == set(shown.sites)
    )
    assert shown.test_images("site 3'") == made.test_images(HAIFA)
    assert made.sites[3] == BEIJING, "the comparison stays as it is"
    rows = compared({SEOUL: {0: {"a": 0.5}}, "B": {0: {"a": 0.5}}}, reference=SEOUL)
    shown, told = with_drawable_names(rows, fonts)
    assert ([row.label for row in shown.rows], shown.reference) == (["row 1", "B"], "row 1")


def test_no_letter_of_a_figure_is_a_box() -> None:
    """With the fonts of this machine, and all parts of the figures that show names."""
    rows = {name: {0: dict.fromkeys((BEIJING, HAIFA, "K\u00f6ln"), 0.5)} for name in (SEOUL, KIEV)}
    made = compared(rows, classes=[KIEV, BEIJING, HAIFA])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures = make_figures(made)
        for figure in figures:
            svg_text(figure)
    assert len(figures) == 8
    shown = {text.get_text() for figure in figures for text in figure.figure.findobj(Text)}
    assert not any(HAIFA in text for text in shown)
    assert all(f"is {HAIFA}" in figure.caption for figure in figures)
    assert findfont(FONT)
