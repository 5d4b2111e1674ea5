"""A comparison over folds, loaded and reported: claims by hand, and what is refused."""

import json
import math
from statistics import fmean, stdev

import pytest
from scipy import stats

from pfedst.errors import ConfigurationError, StateError
from pfedst.evaluation.resampled import smallest_detectable
from pfedst.reporting import fold_tables
from pfedst.reporting.loading import load_compared
from pfedst.reporting.make_report import make_report, protocol_lines
from pfedst.reporting.tuning_table import tuning_table
from tests.reporting.fake_runs import write_run

METRIC = "balanced_accuracy"
SPLITS = {0: {"train": 10, "validation": 2, "test": 8}, 1: {"train": 6, "validation": 4, "test": 10}}
CLAIM = {"row": "PFedST", "against": "FedAvg", "measure": METRIC, "prior": None}
GAINS = {(0, 0): 0.10, (0, 1): 0.16, (7, 0): 0.12, (7, 1): 0.14}


def run(folder, method, seed, fold, values, samples=None, **options):
    """A finished run of a fold, whose partition has the seed of the run."""
    split_seed = options.pop("split_seed", seed)
    folds = {"folds": options.pop("folds", 2), "fold": fold, "split_seed": split_seed}
    study = {"method.class_path": method, "data.init_args.folds": 2, "data.init_args.fold": fold}
    return write_run(
        folder, values, seed=seed, method=method, folds=folds,
        study=study | {"data.init_args.split_seed": split_seed} | options.pop("study", {}),
        content={"data": f"{seed} {fold}", "encoder_weights": "w"},
        samples=samples or dict.fromkeys(values, SPLITS[fold]), **options,
    )  # fmt: skip


def folders(root, gains=GAINS, **options):
    """Two rows over the folds of two repetitions; the gain is a mean over two sites."""
    made = {"FedAvg": {}, "PFedST": {}}
    for (seed, fold), gain in gains.items():
        base = {"a": 0.5 + fold / 50, "b": 0.6}
        rows = {"FedAvg": base, "PFedST": {"a": base["a"] + 2 * gain, "b": base["b"]}}
        for label, values in rows.items():
            made[label][f"{seed}, fold {fold}"] = run(
                root / "runs" / f"{label}-{seed}-{fold}", label, seed, fold, values, **options
            )
    return made


def comparison(root, claims=(CLAIM,), parts=4, tuned=None, **options):
    made = folders(root, **options)
    rows = [
        {"label": label, "options": {}, "tuned": (tuned or {}).get(label), "runs": {k: f.name for k, f in of.items()}}
        for label, of in made.items()
    ]
    content = {"format": 1, "name": "c", "reference": "FedAvg", "rows": rows, "folds": 2, "parts": parts}
    tuning = {"seeds": [], "metric": "balanced_accuracy, validation, last round"} if tuned else None
    (root / "comparison.json").write_text(json.dumps(content | {"claims": list(claims), "tuning": tuning}))
    return root


def test_the_protocol_names_the_values_of_all_runs_of_a_row(tmp_path) -> None:
    """A row that is tuned within each fold has several; the first run's alone would be a wrong number."""
    root = comparison(tmp_path)
    for folder, rate in zip(sorted((root / "runs").glob("PFedST-*")), (1e-3, 3e-4, 1e-3, 1e-4), strict=True):
        summary = json.loads((folder / "summary.json").read_text())
        summary["protocol"]["optimizer"]["lr"] = rate
        summary["protocol"]["loss"] = f"BalancedSoftmax(tau={1 if rate == 1e-3 else 0.5})"
        (folder / "summary.json").write_text(json.dumps(summary))
    (line,) = (line for line in protocol_lines(load_compared([root])) if line.startswith("budget"))
    assert "lr 0.0001 / 0.0003 / 0.001, " in line
    assert "BalancedSoftmax(tau=1) / BalancedSoftmax(tau=0.5): PFedST" in line


def test_a_claim_by_hand(tmp_path) -> None:
    compared = load_compared([comparison(tmp_path)])
    (tested,) = fold_tables.tested_claims(compared)
    d = list(GAINS.values())
    ratio = 2 * 2 * (8 + 10) / (2 * 2 * (10 + 6))  # sites x repetitions, over both folds; validation in neither
    assert fold_tables.test_to_train(compared) == ratio
    assert sorted(fold_tables.paired(compared, tested.claim)) == pytest.approx(sorted(d))
    t = fmean(d) / math.sqrt(stdev(d) ** 2 * (1 / 4 + ratio))
    assert tested.test.p_value == tested.p_holm == pytest.approx(2 * stats.t.sf(t, 3))
    assert tested.p_holm < 0.05
    assert tested.result == "higher"
    assert tested.detectable == pytest.approx(smallest_detectable(stdev(d), 4, ratio))
    report = make_report(compared, METRIC)
    assert any("Claimed, of these sites" in note and "PFedST higher than FedAvg" in note for note in report.notes)
    names = [table.name for table in report.tables]
    assert "tests" not in names
    (described,) = (table for table in report.tables if table.name == "differences")
    assert [cell.text for cell in described.rows[0]] == ["PFedST", "+13.0", "2.6", "4 of 4"]
    assert not any(heading.startswith("p") for heading in described.headings)
    assert not {cell.mark for table in report.tables for row in table.rows for cell in row} - {""}
    assert "40 images in 2 folds, of which each in turn is test" in report.protocol[0]
    assert "seeds: 0, 7; partitions into 2 folds by the split seeds 0, 7" in report.protocol[4]
    assert report.title.endswith("2 seeds x 2 folds")


def test_holm_is_over_the_named_claims(tmp_path) -> None:
    claims = [
        CLAIM,
        {**CLAIM, "measure": "accuracy"},
        {"row": "FedAvg", "against": "PFedST", **{k: CLAIM[k] for k in ("measure", "prior")}},
    ]
    tested = fold_tables.tested_claims(load_compared([comparison(tmp_path, claims)]))
    assert [one.p_holm for one in tested] == pytest.approx([min(1.0, 3 * tested[0].test.p_value)] * 3)
    assert tested[2].test.mean == pytest.approx(-0.13)


def test_nothing_is_claimed_while_folds_are_missing_or_without_a_name(tmp_path) -> None:
    (tmp_path / "a").mkdir()
    compared = load_compared([comparison(tmp_path / "a", parts=6)])
    (tested,) = fold_tables.tested_claims(compared)
    assert (tested.result, tested.is_complete) == ("none", False)
    assert any("while folds are missing (4 of 6 are there)" in note for note in make_report(compared, METRIC).notes)
    (tmp_path / "b").mkdir()
    notes = make_report(load_compared([comparison(tmp_path / "b", claims=())]), METRIC).notes
    assert any("No comparison was named before the runs" in note for note in notes)
    (tmp_path / "c").mkdir()
    compared = load_compared([comparison(tmp_path / "c", data="SYNTHETIC")])
    table = fold_tables.claims_table(compared, fold_tables.tested_claims(compared))
    assert table.rows[0][-1].text == "none"


def test_seeds_of_one_partition_are_averaged(tmp_path) -> None:
    made = []
    for seed, gain in ((0, 0.1), (1, 0.3)):
        for fold in (0, 1):
            made.append(run(tmp_path / f"f{seed}{fold}", "FedAvg", seed, fold, {"a": 0.5}, split_seed=0))
            made.append(run(tmp_path / f"p{seed}{fold}", "PFedST", seed, fold, {"a": 0.5 + gain}, split_seed=0))
    compared = load_compared(made, "FedAvg")
    claim = fold_tables.Claim("PFedST", "FedAvg", METRIC)
    assert fold_tables.paired(compared, claim) == pytest.approx([0.2, 0.2])
    without = load_compared([folder for folder in made if folder.name != "p11"], "FedAvg")
    assert len(fold_tables.paired(without, claim)) == 1  # one side lacks a seed
    assert len(compared.rows[0].confusions) == 2
    assert sum(map(sum, compared.rows[0].confusions[0])) == 20  # both folds of one seed


def test_runs_over_folds_without_a_comparison_are_rows(tmp_path) -> None:
    made = folders(tmp_path)
    compared = load_compared([folder for of in made.values() for folder in of.values()])
    assert [(row.label, len(row.runs)) for row in compared.rows] == [("FedAvg", 4), ("PFedST", 4)]
    assert [run.words for run in compared.rows[0].runs][1:3] == ["seed 0, fold 1", "seed 7, fold 0"]
    assert compared.folds == 2
    assert not compared.notes


def test_what_cannot_stand_in_one_table(tmp_path) -> None:
    first = run(tmp_path / "a", "FedAvg", 0, 0, {"a": 0.5})
    others = {
        "two runs have the same seed and fold": run(tmp_path / "b", "FedAvg", 0, 0, {"a": 0.5}),
        "differ in folds or images": run(tmp_path / "c", "FedAvg", 0, 1, {"a": 0.5}, folds=3),
        "they differ in folds or": write_run(tmp_path / "d", {"a": 0.5}, method="Local"),
        "they differ in samples": run(
            tmp_path / "e", "Local", 0, 0, {"a": 0.5}, samples={"a": {"train": 9, "validation": 3, "test": 8}}
        ),
    }
    for told, other in others.items():
        with pytest.raises(ConfigurationError, match=told):
            load_compared([first, other])


def test_a_claim_at_a_prior(tmp_path) -> None:
    claims = [
        {**CLAIM, "measure": "accuracy", "prior": "balanced"},
        {"row": "PFedST", "against": "FedAvg + own prior", "measure": "accuracy", "prior": "site"},
    ]
    compared = load_compared([comparison(tmp_path, claims)])
    with pytest.raises(StateError, match="no metrics at the class prior balanced, which a claim"):
        fold_tables.tested_claims(compared)
    for row in compared.rows:
        for one in row.runs:
            clients = one.summary["personal"]["clients"]
            at = {
                prior: {"clients": {site: {"accuracy": of[METRIC] * factor} for site, of in clients.items()}}
                for prior, factor in (("balanced", 1.0), ("site", 0.5))
            }
            one.summary["at_priors"] = {"last": {"round": 5, "test": {"personal": at}}}
    tested = fold_tables.tested_claims(compared)
    assert [one.test.mean for one in tested] == pytest.approx([0.13, 0.065])
    assert "accuracy at the site prior" in tested[1].words
    del one.summary["at_priors"]["last"]["test"]["personal"]["site"]["clients"]["a"]["accuracy"]
    with pytest.raises(StateError, match="no accuracy of a, which a claim"):
        fold_tables.tested_claims(compared)
    one.summary["at_priors"]["last"]["round"] = 3
    with pytest.raises(StateError, match="of the last round alone; use --round last"):
        fold_tables.tested_claims(compared)


def test_a_claim_on_a_row_without_runs(tmp_path) -> None:
    with pytest.raises(ConfigurationError, match="names the row Local, which has no finished run"):
        fold_tables.tested_claims(load_compared([comparison(tmp_path, [{**CLAIM, "row": "Local"}])]))


def test_options_tuned_within_folds(tmp_path) -> None:
    def part(seed, fold, chosen):
        trials = [{"options": {"model.optimizer.lr": lr}, "validation": lr} for lr in (0.1, 0.2)]
        options = None if chosen is None else {"model.optimizer.lr": chosen}
        return {"split_seed": seed, "fold": fold, "chosen": options, "trials": trials}

    parts = [part(0, 0, 0.1), part(0, 1, 0.2), part(7, 0, 0.2), part(7, 1, None)]
    tuned = {"PFedST": {"parts": parts, "edges": [["model.optimizer.lr", "high"]]}}
    compared = load_compared([comparison(tmp_path, tuned=tuned)])
    assert "PFedST, split seed 7, fold 1: missing, as all trials failed" in compared.notes
    assert not [note for note in compared.notes if "model.optimizer" in note]
    (row,) = tuning_table(compared).rows
    assert [cell.text for cell in row] == [
        "PFedST", "lr 0.1: 1 of 4, lr 0.2: 2 of 4", "lr 0.1: 10.0, lr 0.2: 20.0", "lr highest",
    ]  # fmt: skip
    assert "Tuned on validation" in [table.title for table in make_report(compared, METRIC).tables]
