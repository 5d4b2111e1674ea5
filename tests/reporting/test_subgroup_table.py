"""Subgroups in the report and in the card: the numbers of a site, and what is withheld."""

import json

import pytest

from pfedst.reporting.formats import markdown
from pfedst.reporting.loading import load_compared
from pfedst.reporting.make_report import make_report
from pfedst.reporting.run_card import card
from tests.reporting import small
from tests.reporting.fake_runs import write_run

WITHHELD = "fewer than 10 images, patients or lesions"
NOTHING = {"value": None, "low": None, "high": None}


def table(name, accuracy, low=None, high=None, **sizes):
    found = {"balanced_accuracy": {"value": accuracy, "low": low, "high": high}, "auroc": NOTHING}
    found["accuracy"] = {"value": accuracy, "low": low, "high": high}
    return {"name": name, "images": 30, "units": 20, "classes": 2, "rare_classes": 0, **sizes, "personal": found}


SUBGROUPS = {
    "x": {
        "minimum": 10,
        "columns": {
            "sex": [table("f", 0.6, 0.5, 0.7), {"name": "m", "withheld": WITHHELD}],
            "age": [table("below 40", 0.8, rare_classes=1)],
        },
    },
    "y": {"minimum": 5, "columns": {"sex": [table("m", 0.9), table("f", 0.4)]}},
}


def test_hospitals_stand_side_by_side_and_what_is_withheld_has_no_number() -> None:
    made = small.compared({"PFedST": {0: {"x": 0.6, "y": 0.7}}, "FedAvg": {0: {"x": 0.5, "y": 0.5}}})
    made.rows[0].first.summary["subgroups"] = SUBGROUPS
    report = make_report(made, "balanced_accuracy")
    (found,) = (table for table in report.tables if table.name == "subgroups")
    texts = [[cell.text for cell in row] for row in found.rows]
    dashes = ["-"] * 9
    assert texts == [
        ["f", "sex", "x", "30", "20", "2", "60.0", "50.0 to 70.0", "-", "-", "60.0", "50.0 to 70.0", ""],
        ["f", "sex", "y", "30", "20", "2", "40.0", "-", "-", "-", "40.0", "-", ""],
        ["m", "sex", "x", *dashes, f"withheld: {WITHHELD}"],
        ["m", "sex", "y", "30", "20", "2", "90.0", "-", "-", "-", "90.0", "-", ""],
        ["below 40", "age", "x", "30", "20", "2", "80.0", "-", "-", "-", "80.0", "-",
         "rare classes: 1 of 2"],
    ]  # fmt: skip
    assert "minimum of its site (5, 10)" in found.caption
    assert f"withheld: {WITHHELD}" in markdown(report)


@pytest.fixture
def run(tmp_path):
    """A run with the metrics of its last evaluation: of two sites, and of subgroups."""
    folder = write_run(tmp_path / "run", {"x": 0.6, "y": 0.7})
    summary = json.loads((folder / "summary.json").read_text())
    ends = {"value": 0.6, "low": 0.55, "high": 0.65}
    of_x = {"images": 10, "units": 9, "classes": 3, "rare_classes": 2}
    intervals = {"x": of_x | {"personal": {"balanced_accuracy": ends, "auroc": NOTHING, "accuracy": ends}}}
    summary |= {"intervals": intervals, "subgroups": SUBGROUPS, "calibration": {}}
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def test_the_card_holds_subgroups_and_the_intervals_of_sites(run) -> None:
    made = card(run)
    page, results = made.markdown, made.to_json()["results"]
    for words in (
        r"| x | personal | 10 | 60.0 (55.0 to 65.0) \* | 60.0 | 60.0 | 60.0 (55.0 to 65.0) |",
        r"| x | generic | 10 | 60.0 (55.0 to 65.0) \* |",
        "| y | personal | 10 | 70.0 | 70.0 | 70.0 | 70.0 |",
        "too narrow then. They are at: x (2 of 3).",
        "| sex | f | x | 30 | 20 | 2 | 60.0 (50.0 to 70.0) | - | 60.0 (50.0 to 70.0) |  |",
        f"| sex | m | x | - | - | - | - | - | - | withheld: {WITHHELD} |",
    ):
        assert words in page, words
    assert results["subgroups"] == SUBGROUPS
    assert results["sites"]["x"]["personal"]["accuracy"] == {"value": 0.6, "low": 0.55, "high": 0.65}
    assert results["sites"]["y"]["generic"]["auroc"] == {"value": 0.7, "low": None, "high": None}
    (item,) = (item for item in made.items if item.number == 29)
    assert (item.status, item.where) == ("answered", "Results")


def test_a_run_without_subgroups_has_no_such_table(tmp_path) -> None:
    compared = load_compared([write_run(tmp_path / "r", {"a": 0.6})])
    assert "subgroups" not in [table.name for table in make_report(compared, "balanced_accuracy").tables]
    assert "Not recorded: `--data.subgroups`" in card(tmp_path / "r").markdown
