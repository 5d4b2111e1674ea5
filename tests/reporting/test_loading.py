"""Which runs stand in one table, under which label, and which may not."""

import json

import pytest

from pfedst.errors import ConfigurationError, StateError
from pfedst.reporting.comparison import OverSites
from pfedst.reporting.figures.curves import learning_curves
from pfedst.reporting.loading import load_compared
from pfedst.reporting.make_report import protocol_lines
from tests.reporting.fake_runs import as_format_1, write_comparison, write_run

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


STUDY = {"method.class_path": "a.FedAvg", "coordinator.rounds": 5}
PRECISE = {"trainer.precision": "bf16-mixed", "trainer.gradient_clip_val": 0.01, "trainer.accumulate_grad_batches": 4}


def rows_of(compared):
    return [(row.label, [run.seed for run in row.runs]) for row in compared.rows]


def test_runs_of_one_study_are_one_row_whatever_their_protocol_says_of_the_machine(tmp_path) -> None:
    one = write_run(tmp_path / "one", SITES, study=STUDY, cache="none", threads=1)
    other = write_run(tmp_path / "other", SITES, seed=1, study=STUDY, cache="taps, float32", threads=8)
    compared = load_compared([one, other])
    assert rows_of(compared) == [("FedAvg", [0, 1])]
    assert compared.notes == ()


def test_runs_that_differ_in_an_option_of_the_study_are_two_rows(tmp_path) -> None:
    """With one protocol: precision, clipping and accumulation are not told there, and two seeds hid them."""
    plain = write_run(tmp_path / "plain", SITES, study=STUDY)
    precise = write_run(tmp_path / "precise", SITES, seed=1, study=STUDY | PRECISE)
    label = "FedAvg, accumulate_grad_batches 4, gradient_clip_val 0.01, precision bf16-mixed"
    assert rows_of(load_compared([plain, precise])) == [("FedAvg", [0]), (label, [1])]
    again = write_run(tmp_path / "again", SITES, seed=2, study=STUDY | PRECISE)
    other = write_run(tmp_path / "local", SITES, study=STUDY, method="Local")
    assert rows_of(load_compared([plain, precise, again, other])) == [("FedAvg", [0]), (label, [1, 2]), ("Local", [0])]


def test_labels_name_classes_shortly_and_whole_keys_where_the_last_words_are_one(tmp_path) -> None:
    adapters = [STUDY | {"model.adapter.class_path": f"pfedst.adapters.{name}"} for name in ("LinearHead", "LoRATower")]
    paths = [write_run(tmp_path / f"{n}", SITES, study=study) for n, study in enumerate(adapters)]
    labels = [row.label for row in load_compared(paths).rows]
    assert labels == ["FedAvg, adapter LinearHead", "FedAvg, adapter LoRATower"]
    seeds = [STUDY | {f"{group}.init_args.seed": 1} for group in ("data", "method")]
    paths = [write_run(tmp_path / f"seed {n}", SITES, study=study) for n, study in enumerate(seeds)]
    assert [row.label for row in load_compared(paths).rows] == [
        "FedAvg, data.init_args.seed 1, method.init_args.seed default",
        "FedAvg, data.init_args.seed default, method.init_args.seed 1",
    ]


def test_the_same_options_on_other_images_or_weights_are_two_rows(tmp_path) -> None:
    """A path is no option of the study: what lies there is told by its hash."""
    hashes = [{"data": f"{n}" * 32, "encoder_weights": "f" * 64} for n in (1, 2)]
    paths = [write_run(tmp_path / f"{n}", SITES, seed=n, study=STUDY, content=c) for n, c in enumerate(hashes)]
    assert rows_of(load_compared(paths)) == [("FedAvg, data 11111111", [0]), ("FedAvg, data 22222222", [1])]
    weights = [{"data": "1" * 32, "encoder_weights": f"{n}" * 64} for n in (1, 2)]
    paths = [write_run(tmp_path / f"w{n}", SITES, seed=n, study=STUDY, content=c) for n, c in enumerate(weights)]
    assert len(load_compared(paths).rows) == 2
    # one fingerprint a site, where sites have images of their own
    many = {"data": {"a": "1" * 32, "b": "2" * 32}, "encoder_weights": "f" * 64}
    paths = [write_run(tmp_path / f"m{n}", SITES, seed=n, study=STUDY, content=many) for n in range(2)]
    assert rows_of(load_compared(paths)) == [("FedAvg", [0, 1])]


def test_options_that_change_last_digits_are_told_within_and_between_rows(tmp_path) -> None:
    paths = [
        write_run(tmp_path / "0", SITES, study=STUDY, last_digits={"trainer.accelerator": "cpu"}),
        write_run(tmp_path / "1", SITES, seed=1, study=STUDY, last_digits={"coordinator.threads": 2}),
        write_run(tmp_path / "2", SITES, study=STUDY, method="Local", last_digits={"coordinator.threads": 2}),
    ]
    compared = load_compared(paths)
    assert rows_of(compared) == [("FedAvg", [0, 1]), ("Local", [0])]
    assert compared.notes == (
        "runs differ in coordinator.threads, which changes the last digits of results (default: FedAvg, seed 0; 2: "
        "FedAvg, seed 1, Local)",
        "runs differ in trainer.accelerator, which changes the last digits of results (cpu: FedAvg, seed 0; default: "
        "FedAvg, seed 1, Local)",
    )
    assert load_compared(paths[1:]).notes == ()


def test_a_summary_of_format_1_is_read_and_grouped_by_its_protocol(tmp_path) -> None:
    old = [as_format_1(write_run(tmp_path / f"old{seed}", SITES, seed=seed, threads=seed)) for seed in (0, 1)]
    other = as_format_1(write_run(tmp_path / "other", SITES, rounds=6))
    assert rows_of(load_compared(old)) == [("FedAvg", [0, 1])]
    assert [row.label for row in load_compared([*old, other]).rows] == ["FedAvg, rounds 5", "FedAvg, rounds 6"]
    run = load_compared(old).rows[0].first
    assert run.summary["format"] == 2
    assert (run.study, run.last_digits, run.content) == ({}, {}, {})
    assert run.summary["pfedst_version"] is None
    assert run.summary["evaluated"]["round"] == 5
    # its numbers are those of the file, but for calibration errors, whose bins were others
    told = json.loads((old[0] / "summary.json").read_text())
    assert {key: run.summary[key] for key in ("protocol", "cost")} == {key: told[key] for key in ("protocol", "cost")}
    for model in ("personal", "generic"):
        found, expected = run.summary[model], told[model]
        assert found["counts"] == expected["counts"]
        for metrics, other in ((found["mean"], expected["mean"]), (found["clients"]["a"], expected["clients"]["a"])):
            assert metrics == other | {"ece": None, "classwise_ece": None}


def test_calibration_errors_of_an_older_version_are_left_out_and_told(tmp_path) -> None:
    """They were computed in other bins, and stood beside new ones in silence."""
    old, new = write_run(tmp_path / "old", SITES), write_run(tmp_path / "new", SITES, method="PFedST")
    summary = json.loads((old / "summary.json").read_text())
    del summary["evaluated"]["bins"], summary["class_metrics"]
    (old / "summary.json").write_text(json.dumps(summary))
    compared = load_compared([old, new])
    values = [row.values("personal", OverSites.MEAN, "ece") for row in compared.rows]
    assert values == [[], [pytest.approx(0.6)]]
    assert compared.notes == (
        "calibration errors are left out of FedAvg: an older version computed them in other bins; run it again to have "
        "them",
    )
    assert [bool(learning_curves(load_compared([path]), "ece")) for path in (old, new)] == [False, True]
    assert compared.rows[0].first.class_metrics == {}


def test_a_run_of_format_1_never_joins_a_row_whose_options_are_known(tmp_path) -> None:
    old = as_format_1(write_run(tmp_path / "old", SITES, seed=1))
    new = write_run(tmp_path / "new", SITES, study=STUDY)
    assert rows_of(load_compared([old, new])) == [("FedAvg, options not recorded", [1]), ("FedAvg", [0])]


def test_a_run_beside_a_comparison_joins_its_row_only_with_the_same_options(tmp_path) -> None:
    """A label alone made a seed of it: the same fault as two seeds of other options."""
    folder = write_comparison(tmp_path / "c", {"FedAvg": {0: SITES}}, reference="FedAvg", study=STUDY | PRECISE)
    same = write_run(tmp_path / "same", SITES, seed=1, study=STUDY | PRECISE)
    plain = write_run(tmp_path / "plain", SITES, seed=2, study=STUDY)
    old = as_format_1(write_run(tmp_path / "old", SITES, seed=3))
    found = rows_of(load_compared([folder, same, plain, old]))
    assert found[0] == ("FedAvg", [0, 1])
    assert dict(found[1:]).keys() == {
        "FedAvg, trainer.accumulate_grad_batches default, trainer.gradient_clip_val default, trainer.precision default",
        "FedAvg, options not recorded",
    }
    assert rows_of(load_compared([folder, old])) == [("FedAvg", [0]), ("FedAvg, options not recorded", [3])]
    # a row may bear the name of another method
    named = write_comparison(tmp_path / "n", {"Local": {0: SITES}}, reference="Local", study=STUDY, method="FedAvg")
    local = write_run(tmp_path / "run", SITES, seed=1, study=STUDY, method="Local")
    assert rows_of(load_compared([named, local])) == [("Local", [0]), ("Local, run", [1])]


def test_two_comparisons_share_a_row_only_with_the_same_options(tmp_path) -> None:
    one = write_comparison(tmp_path / "one", {"A": {0: SITES}, "B": {0: SITES}}, reference="B", study=STUDY)
    same = write_comparison(tmp_path / "same", {"A": {1: SITES}}, reference="A", study=STUDY)
    other = write_comparison(tmp_path / "other", {"A": {2: SITES, 3: None}}, reference="A", study=STUDY | PRECISE)
    compared = load_compared([one, same, other])
    assert rows_of(compared) == [("A", [0, 1]), ("B", [0]), ("A, other", [2])]
    *differences, missing = compared.notes
    assert missing == "A, other, seed 3: missing, as it failed or is not done"
    assert [note.split(" (")[0] for note in differences] == [f"rows differ in {key}" for key in sorted(PRECISE)]
    assert compared.reference == "B"


def test_an_option_of_one_method_says_nothing_of_the_others(tmp_path) -> None:
    key = "method.init_args.mu"
    given = {"a": ("FedAvg", {}, 3), "b": ("FedProx", {key: 1.0}, 3), "c": ("FedProx", {key: 2.0}, 20)}
    compared = load_compared(
        [
            write_run(tmp_path / name, SITES, study=STUDY | own, method=method, rounds=rounds)
            for name, (method, own, rounds) in given.items()
        ]
    )
    (note,) = [note for note in compared.notes if "method.mu" in note]
    assert note.startswith("rows of one method differ in method.mu (1.0: ")  # as the option is called
    assert "FedProx" in note
    assert "FedAvg" not in note
    assert any("budget of every row that trains: 3 to 20 rounds" in line for line in protocol_lines(compared))


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
    for content in ({"name": "old"}, {"format": 3}, {"format": "1"}):
        (run / "summary.json").write_text(json.dumps(content))
        with pytest.raises(StateError, match="of another version"):
            load_compared([run])
    for text in ("{", "null", '["format"]'):
        (run / "summary.json").write_text(text)
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
