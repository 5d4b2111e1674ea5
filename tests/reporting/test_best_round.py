"""A report of the best round of each run on validation, in place of the last one."""

import json

import pytest

from pfedst.cli import main
from pfedst.errors import ConfigurationError
from pfedst.reporting.loading import load_compared
from pfedst.reporting.make_report import make_report
from tests.reporting.fake_runs import as_format_1, of_model, write_comparison, write_run

METRIC = "balanced_accuracy"
ONE_CLASS = {
    "what": "one_class",
    "site": "a",
    "model": "personal",
    "round": 5,
    "since": 2,
    "split": "validation",
    "images": 12,
    "class": "x",
}
BELOW = {
    "what": "below_start",
    "site": None,
    "model": "personal",
    "round": 5,
    "since": 5,
    "split": "validation",
    "images": 24,
    "start": 0.7,
    "now": 0.5,
    "fewest_images": 9,
}


def with_best(folder, round_number, values, **more):
    """The same run with another best round."""
    file = folder / "summary.json"
    summary = json.loads(file.read_text())
    models = {"personal": of_model(values), "generic": of_model(values)}
    summary["best_on_validation"] = {"round": round_number, "validation_score": 0.9, **models, **more}
    file.write_text(json.dumps(summary))
    return folder


def warned(folder, *warnings):
    file = folder / "summary.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"warnings": list(warnings), "to_try": []}))
    return folder


def test_the_numbers_of_the_best_round_are_labelled(tmp_path) -> None:
    run = with_best(write_run(tmp_path / "r", {"a": 0.5, "b": 0.7}), 3, {"a": 0.9, "b": 0.8}, finetuned=False)
    last, best = load_compared([run]), load_compared([run], round_choice="best")
    assert last.rows[0].values("personal", "a", METRIC) == [0.5]
    assert best.rows[0].values("personal", "a", METRIC) == [0.9]
    assert best.rows[0].first.confusion != last.rows[0].first.confusion
    assert best.rows[0].first.total_bytes == last.rows[0].first.total_bytes, "cost is of the whole run"
    found = make_report(best, METRIC)
    assert "BEST ON VALIDATION (round 3)" in found.tables[0].caption
    assert any("BEST ON VALIDATION (round 3), not the last" in note for note in found.notes)
    assert "after the last round" in make_report(last, METRIC).tables[0].caption


def test_a_summary_of_format_1_has_a_best_round_too(tmp_path) -> None:
    run = as_format_1(with_best(write_run(tmp_path / "r", {"a": 0.5}), 3, {"a": 0.9}))
    assert load_compared([run], round_choice="best").rows[0].values("personal", "a", METRIC) == [0.9]


def test_a_run_without_a_best_round_is_refused_by_name(tmp_path) -> None:
    with pytest.raises(ConfigurationError, match=r"r has no best round.*use --round last"):
        load_compared([write_run(tmp_path / "r", {"a": 0.5})], round_choice="best")


def test_a_comparison_proposes_its_round(tmp_path) -> None:
    folder = write_comparison(tmp_path / "c", {"FedAvg": {0: {"a": 0.5}}}, "FedAvg")
    with_best(folder / "runs/FedAvg-0", 2, {"a": 0.8})
    file = folder / "comparison.json"
    assert not load_compared([folder]).of_best_rounds
    file.write_text(json.dumps(json.loads(file.read_text()) | {"round": "best"}))
    assert load_compared([folder]).of_best_rounds
    assert not load_compared([folder], round_choice="last").of_best_rounds


def test_warnings_stand_by_row_and_site(tmp_path) -> None:
    one = warned(write_run(tmp_path / "one", {"a": 0.5, "b": 0.5}, seed=0), ONE_CLASS, BELOW)
    two = warned(write_run(tmp_path / "two", {"a": 0.5, "b": 0.5}, seed=1), BELOW | {"now": 0.4})
    none = warned(write_run(tmp_path / "none", {"a": 0.5, "b": 0.5}, method="Local"))
    compared = load_compared([one, two, none])
    (table,) = [table for table in make_report(compared, METRIC).tables if table.name == "warnings"]
    rows = [[cell.text for cell in row] for row in table.rows]
    assert [row[:4] for row in rows] == [
        ["FedAvg", "a", "one class only", "0"],
        ["FedAvg", "mean over sites", "below its start", "0, 1"],
    ]
    assert rows[0][4].endswith("the model predicts only x for all 12 validation images")
    assert "seed 1: mean over sites: the model is 30.0 points below" in rows[1][4]
    assert any("see the table of models to look at" in note for note in make_report(compared, METRIC).notes)
    old = load_compared([write_run(tmp_path / "old", {"a": 0.5, "b": 0.5})])
    assert [table.name for table in make_report(old, METRIC).tables if table.name == "warnings"] == []


def test_the_command_line_writes_either(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("pfedst.reporting.figures.make_figures", lambda *given: [])
    run = with_best(write_run(tmp_path / "r", {"a": 0.5}), 0, {"a": 0.9})
    for choice, found in (("best", "90.0"), ("last", "50.0")):
        assert main(["report", str(run), "--round", choice]) == 0
        assert found in (run / "report/report.md").read_text()
