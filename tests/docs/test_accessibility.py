"""Reports and pages of the documentation in a real browser: axe-core finds no violation, light and dark, at two widths."""

import pytest
from PIL import Image

import pfedst
from pfedst.cli import main
from pfedst.reporting.write import write_files
from tests.data.audit.test_shift import Colours
from tests.docs import browser as driver
from tests.docs.site import ROOT, build
from tests.reporting.small import compared

pytestmark = [
    pytest.mark.docs,
    pytest.mark.skipif(bool(driver.missing()), reason=f"reports are not checked in a browser: {driver.missing()}"),
]
SCREENS = [(width, scheme) for width in (360, 1280) for scheme in ("light", "dark")]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with driver.browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def of_a_run(folder):
    """Of a run that was trained."""
    assert main(["report", str(ROOT / "tests/fixtures/run_of_format_1"), "--output", str(folder)]) == 0
    return folder / "report.html"


def of_a_comparison(folder):
    """With every table, figure and note, and with long names."""
    rows = {
        label: {seed: {f"a hospital with a long name {n}": level + 0.01 * (n + seed) for n in range(4)} for seed in (0, 1)}
        for label, level in {"ZeroShot": 0.3, "FedAvg": 0.6, "FedDPA, adapter LoRAAdapter": 0.5, "PFedST": 0.8}.items()
    }  # fmt: skip
    write_files(compared(rows, notes=("rows differ in lr: 0.1 and 0.01",), random_weights=True), folder)
    return folder / "report.html"


def of_an_audit(folder):
    """With findings that show images."""
    for site in ("north", "south"):
        for number in range(6):
            split = "test" if number > 3 else "train"
            file = folder / "images" / site / split / ("a", "b")[number % 2] / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (64, 64), (200, 40 * (number // 2), 90)).save(file)
    report = pfedst.audit(folder / "images", page=folder / "audit.html", encoder=Colours())
    assert {finding.severity for finding in report.findings} >= {"error", "warning"}
    return folder / "audit.html"


def check(page, browser) -> None:
    for width, scheme in SCREENS:
        browser.open(page, width, scheme)
        assert browser.violations() == [], (page, width, scheme)
        assert (
            browser.result("document.documentElement.scrollWidth") <= width
        )  # tables and figures scroll, not the page


@pytest.mark.parametrize("make", [of_a_run, of_a_comparison, of_an_audit])
def test_a_report_breaks_no_rule_of_axe(make, browser, tmp_path) -> None:
    check(make(tmp_path), browser)


def test_the_documentation_breaks_no_rule_of_axe(browser, tmp_path) -> None:
    assert build(ROOT / "mkdocs.yml", tmp_path).returncode == 0
    for name in (".", "methods", "results"):  # with a drawing, a wide table, code
        check(tmp_path / name / "index.html", browser)


def test_a_broken_rule_is_found(browser, tmp_path) -> None:
    (tmp_path / "page.html").write_text('<html lang="en"><title>x</title><main><h1>x</h1><img src="x.png"></main>')
    browser.open(tmp_path / "page.html", 360, "light")
    (found,) = browser.violations()
    assert found.startswith("image-alt: ")
