"""The table of temperatures, of one run."""

import json

from pfedst.reporting.best_round import OF_PREDICTIONS, at_best_round
from pfedst.reporting.loading import load_compared
from pfedst.reporting.make_report import make_report
from pfedst.reporting.temperature_table import temperature_table
from tests.reporting import small
from tests.reporting.fake_runs import write_run


def test_before_and_after_and_coverage_of_each_site() -> None:
    made = small.compared(
        {"PFedST": {0: {"x": 0.6, "y": None}, 1: {"x": 0.9, "y": 0.9}}, "FedAvg": {0: {"x": 0.5, "y": 0.5}}}
    )
    table = temperature_table(made)
    assert table.headings == (
        "site", "validation images", "errors", "T", "ECE, %, T = 1", "ECE, %, fitted T", "NLL, T = 1", "NLL, fitted T",
        "Brier, T = 1", "Brier, fitted T", "coverage asked, %", "coverage, %", "selective accuracy, %",
    )  # fmt: skip
    assert [[cell.text for cell in row] for row in table.rows] == [
        ["x", "8", "1", "2.00", "0.0", "20.0", "0.450", "0.350", "0.900", "0.700", "80.0", "75.0", "95.0"],
        ["y", "8", "1", "2.00", *["-"] * 6, "80.0", "-", "-"],
    ]
    assert table.rows[0][5].value == 0.9 - 0.7
    assert "PFedST with seed 0" in table.caption
    assert table in make_report(made, "balanced_accuracy").tables


def test_the_caption_says_what_is_missing_and_where_no_prior_is_known() -> None:
    made = small.compared({"PFedST": {0: {"x": 0.6, "y": 0.6, "z": 0.6}}})
    found = made.rows[0].first.calibration
    found["x"] |= {"temperature": 1.0, "reason": "fewer than 15 validation images"}
    found["x"]["test"]["selective"] = None
    found["y"]["prior"] = "training"
    del found["z"]
    table = temperature_table(made)
    assert [cell.text for cell in table.rows[0][-2:]] == ["-", "-"]
    assert "Neither temperature nor threshold: x (fewer than 15 validation images)." in table.caption
    assert "not known at y: there T divides its logits" in table.caption
    assert "Not fitted without validation images, or not reported: z." in table.caption


def test_runs_of_an_older_version_have_no_such_table(tmp_path) -> None:
    compared = load_compared([write_run(tmp_path / "r", {"a": 0.6})])
    assert compared.rows[0].first.calibration == {}
    assert temperature_table(compared) is None


def test_another_round_than_the_last_has_no_temperature(tmp_path) -> None:
    summary = json.loads((write_run(tmp_path / "r", {"a": 0.6}) / "summary.json").read_text())
    last = summary["protocol"]["round"]
    for number, kept in ((last, {"a": 1}), (last - 1, {})):
        best = {"round": number, "personal": summary["personal"], "generic": summary["generic"], "finetuned": False}
        kept_before = {key: {"a": 1} for key in OF_PREDICTIONS}
        found = summary | kept_before | {"best_on_validation": best, "warnings": []}
        assert at_best_round(found, tmp_path)["calibration"] == kept
