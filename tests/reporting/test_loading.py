"""Which runs stand in one table, under which label, and which may not."""

import json

import pytest

from pfedst.errors import ConfigurationError, StateError
from pfedst.reporting.loading import load_compared
from tests.reporting.fake_runs import write_comparison, write_run

SITES = {"a": 0.5, "b": 0.7}


def test_seeds_of_one_protocol_are_one_row(tmp_path) -> None:
    paths = [write_run(tmp_path / f"r{seed}", SITES, seed=seed) for seed in (2, 0)]
    paths.append(write_run(tmp_path / "other", SITES, seed=0, method="PFedST"))
    compared = load_compared(paths)
    assert [(row.label, [run.seed for run in row.runs]) for row in compared.rows] == [
        ("FedAvg", [0, 2]),
        ("PFedST", [0]),
    ]
    assert compared.reference == "PFedST"
    assert (compared.sites, compared.seeds, compared.classes) == (["a", "b"], [0, 2], ["x", "y"])
    assert load_compared(paths, "FedAvg").reference == "FedAvg"
    assert compared.notes == ()


def test_rows_of_one_method_are_told_apart_by_what_differs(tmp_path) -> None:
    one = write_run(tmp_path / "one", SITES, method_options={"mu": 0.1, "weighting": "samples"})
    other = write_run(tmp_path / "other", SITES, method_options={"mu": 0.2, "weighting": "samples"}, rounds=6)
    compared = load_compared([one, other])
    assert [row.label for row in compared.rows] == ["FedAvg, mu 0.1, rounds 5", "FedAvg, mu 0.2, rounds 6"]
    assert compared.notes == ("rows differ in rounds (5: FedAvg, mu 0.1, rounds 5; 6: FedAvg, mu 0.2, rounds 6)",)


def test_a_row_that_trains_nothing_has_no_budget_to_differ_in(tmp_path) -> None:
    trained = write_run(tmp_path / "one", SITES)
    untrained = write_run(tmp_path / "zero", SITES, method="ZeroShot", rounds=0, cost={"parameters_trained": 0})
    assert load_compared([trained, untrained]).notes == ()


def test_a_comparison_has_its_own_labels_reference_and_gaps(tmp_path) -> None:
    folder = write_comparison(
        tmp_path / "c", {"B": {0: SITES, 1: None}, "A": {0: SITES}, "none": {0: None}, "gone": {}}, reference="B"
    )
    compared = load_compared([folder])
    assert [row.label for row in compared.rows] == ["B", "A"]
    assert compared.reference == "B"
    assert compared.notes == (
        "B, seed 1: missing, as it failed or is not done",
        "none, seed 0: missing, as it failed or is not done",
        "gone: missing, as all of its trials failed",
    )
    # the reference itself may be what failed
    gone = write_comparison(tmp_path / "d", {"B": {0: None}, "A": {0: SITES}}, reference="B")
    assert load_compared([gone]).reference == "A"


def test_a_comparison_and_a_run_beside_it(tmp_path) -> None:
    folder = write_comparison(tmp_path / "c", {"A": {0: SITES}}, reference="A")
    run = write_run(tmp_path / "r", SITES, method="Mine")
    assert [row.label for row in load_compared([folder, run]).rows] == ["A", "Mine"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"values": {"a": 0.5, "c": 0.7}}, "differ in samples"),
        ({"classes": ["x", "z"]}, "differ in classes"),
        ({"split": "validation"}, "differ in split"),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path, change, told) -> None:
    one = write_run(tmp_path / "one", SITES)
    values = change.pop("values", SITES)
    other = write_run(tmp_path / "other", values, method="Other", **change)
    with pytest.raises(ConfigurationError, match=f"other and .*one cannot stand in one table: they {told}"):
        load_compared([one, other])


def test_the_same_seed_twice_is_refused(tmp_path) -> None:
    paths = [write_run(tmp_path / name, SITES) for name in "xy"]
    with pytest.raises(ConfigurationError, match="FedAvg: two runs have the same seed"):
        load_compared(paths)


def test_what_is_no_run_is_told(tmp_path) -> None:
    with pytest.raises(ConfigurationError, match="none: no folder"):
        load_compared([tmp_path / "none"])
    with pytest.raises(ConfigurationError, match=r"holds no summary.json"):
        load_compared([tmp_path])
    run = write_run(tmp_path / "run", SITES)
    with pytest.raises(ConfigurationError, match="--reference FedAvgg: there is no such row. Did you mean"):
        load_compared([run], "FedAvgg")
    (run / "summary.json").write_text(json.dumps({"name": "old"}))
    with pytest.raises(StateError, match="of another version"):
        load_compared([run])
    (run / "summary.json").write_text("{")
    with pytest.raises(StateError, match="damaged"):
        load_compared([run])
    (tmp_path / "c").mkdir()
    for content, told in (("{", "damaged"), ('{"format": 7}', "of another version")):
        (tmp_path / "c" / "comparison.json").write_text(content)
        with pytest.raises(StateError, match=told):
            load_compared([tmp_path / "c"])
    empty = write_comparison(tmp_path / "empty", {"A": {0: None}}, reference="A")
    with pytest.raises(ConfigurationError, match="no finished run"):
        load_compared([empty])


def test_damaged_records_are_told(tmp_path) -> None:
    run = write_run(tmp_path / "run", SITES)
    found = load_compared([run]).rows[0].first
    (run / "rounds.jsonl").write_text("{")
    with pytest.raises(StateError, match=r"rounds.jsonl is missing or damaged"):
        _ = found.records
