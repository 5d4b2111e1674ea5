"""The page of a report: what it holds, that it needs nothing from elsewhere, and its script in a browser."""

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pfedst.reporting.formats import plain
from pfedst.reporting.page import SCRIPT, PageFigure, anchors, html_page
from pfedst.reporting.report import Report
from pfedst.reporting.report_table import Cell, ReportTable

TABLE = ReportTable(
    name="results",
    title="Results",
    caption="Means.",
    headings=("method", "accuracy", "note"),
    rows=(
        (Cell("m10"), Cell("9 %", 0.09, 0.01), Cell("b")),
        (Cell("m9"), Cell("-"), Cell("-")),
        (Cell("m1"), Cell("80 %", 0.8, 0.01, "best"), Cell("a")),
        (Cell("m2"), Cell("10 %", 0.1, None, "second"), Cell("c")),
    ),
)
SVG = '<svg role="img" aria-label="A is highest" viewBox="0 0 9 9"><g id="a"><path d="M0 0"></path></g></svg>'
REPORT = Report("demo", ("last round",), ("RANDOM WEIGHTS",), (TABLE,))
VOID = {"meta", "img", "br"}


class Reader(HTMLParser):
    """Elements, their attributes and texts; that every element is closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes) -> None:
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.texts.append(data)

    def values(self, attribute: str) -> list[str]:
        return [held[attribute] or "" for _, held in self.elements if attribute in held]


def test_rows_by_hand() -> None:
    page = html_page(REPORT)
    assert (
        '<tr><th scope="row" data-value="m10">m10</th><td class="right" data-value="0.09">9 %</td><td data-value="b">b</td></tr>\n'
        '<tr><th scope="row" data-value="m9">m9</th><td class="right">-</td><td>-</td></tr>\n'
        '<tr><th scope="row" data-value="m1">m1</th><td class="right best" data-value="0.8"><strong>80 %</strong></td><td data-value="a">a</td></tr>\n'
        '<tr><th scope="row" data-value="m2">m2</th><td class="right second" data-value="0.1"><u>10 %</u></td><td data-value="c">c</td></tr>\n'
    ) in page
    assert '<th scope="col" class="right" data-numeric>accuracy</th><th scope="col">note</th>' in page


def test_the_page_reads_from_its_notes_to_its_figures() -> None:
    page = html_page(REPORT, [PageFigure("Curves", "Means over seeds.", SVG)])
    order = [
        "<h1>demo",
        "RANDOM WEIGHTS",
        '<nav id="contents"',
        "last round",
        'id="legend"',
        'id="results"',
        'id="figure-1"',
    ]
    places = [page.index(part) for part in order]
    assert places == sorted(places)
    links = re.findall(r'href="#([^"]+)"', page)
    assert links == ["main", "protocol", "results", "figure-1"]
    assert set(links) <= set(Reader(page).values("id"))


def test_nothing_comes_from_elsewhere() -> None:
    page = html_page(REPORT, [PageFigure("Curves", "", SVG)])
    reader = Reader(page)
    assert all(link.startswith("#") for link in reader.values("href"))
    assert not reader.values("src")
    assert {tag for tag, _ in reader.elements}.isdisjoint(["link", "iframe", "object", "embed", "base"])
    assert not re.search(r"url\(|@import|https?://|//[a-z]+\.", page)
    assert "default-src 'none'" in page
    assert len(SCRIPT.strip().split("\n")) < 40


def test_a_figure_is_in_the_page_with_its_caption() -> None:
    page = html_page(REPORT, [PageFigure("A & B", 'say "x"', SVG)])
    (figure,) = re.findall("<figure>.*?</figure>", page, re.DOTALL)
    assert SVG in figure  # not as an image, in which letters cannot be found or copied
    assert "<figcaption>say &quot;x&quot;</figcaption>" in figure
    assert 'tabindex="0" role="region" aria-labelledby="figure-1"' in figure  # it scrolls on a narrow screen
    assert "Figure 1: A &amp; B</h2>" in page


def test_anchors_are_unique() -> None:
    assert anchors(["results", "Results", "notes", "figure-1", "3 seeds", "é", "results-caption", "a", "a-caption"]) == [
        "results", "results-2", "notes-2", "table-figure-1", "table-3-seeds", "table", "results-caption-2", "a", "a-caption-2",
    ]  # fmt: skip


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=20) | st.text(alphabet="<>&\"'/ab=;!-", max_size=20))
def test_any_text_is_shown_as_it_is(text: str) -> None:
    table = ReportTable(text, text, text, ("h", text), ((Cell(text), Cell(text, 1.0, None, "best")),))
    reader = Reader(html_page(Report(text, (text,), (text,), (table,)), [PageFigure(text, text, "<svg></svg>")]))
    plainly = plain(text)
    tags = [tag for tag, _ in reader.elements]
    assert [tags.count(tag) for tag in ("script", "style", "table", "tr", "td", "svg", "a")] == [1, 1, 1, 2, 1, 1, 4]
    if plainly:
        # title twice, note, protocol, contents, title, caption, heading, cells, caption of the figure
        assert reader.texts.count(plainly) >= 10


def test_a_report_without_anything() -> None:
    page = html_page(Report("empty", (), (), ()))
    Reader(page)
    assert "Read this first" not in page
    assert "Contents" not in page


def dumped(path: Path, page: str, script: str) -> str:
    """A page after a script within it, as chromium has it."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("chromium is not installed: the script of the page is not run")
    path.write_text(page.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={path.parent / 'profile'}",
        "--dump-dom",
    ]
    ended = subprocess.run([chromium, *options, path.as_uri()], capture_output=True, text=True, timeout=600, check=True)
    return ended.stdout


def test_a_heading_sorts(tmp_path: Path) -> None:
    """By a click, up, down and back; what is missing stays last, numbers are numbers, and the others lose their arrow."""
    steps = """
    const said = [], heads = [...document.querySelectorAll("thead th")];
    const press = (column) => {
      heads[column].querySelector("button").click();
      said.push([...document.querySelectorAll("tbody th")].map((cell) => cell.textContent).join(" ")
        + " " + heads.map((head) => head.getAttribute("aria-sort") || "none").join(" "));
    };
    [1, 1, 1, 0, 2, 2].forEach(press);
    heads[1].click();
    said.push("focus " + heads[0].querySelector("button").tabIndex);
    const told = document.createElement("pre");
    told.id = "told";
    told.textContent = said.join("\\n");
    document.body.append(told);
    """
    dom = dumped(tmp_path / "page.html", html_page(REPORT), steps)
    told = re.search(r'<pre id="told">(.*?)</pre>', dom, re.DOTALL)
    assert told is not None
    assert told[1].split("\n") == [
        "m10 m2 m1 m9 none ascending none",
        "m1 m2 m10 m9 none descending none",
        "m10 m9 m1 m2 none none none",
        "m1 m2 m9 m10 ascending none none",
        "m1 m10 m2 m9 none none ascending",
        "m2 m10 m1 m9 none none descending",
        "focus 0",
    ]
    assert 'class="sortable"' in dom
    assert re.findall(r'<th scope="row"[^>]*>(m\d+)', dom) == [
        "m10",
        "m2",
        "m1",
        "m9",
    ]  # the heading itself was clicked
