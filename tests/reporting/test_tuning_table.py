"""The table of what was tuned. That of folds: `test_folds.py`."""

from pfedst.reporting.loading import load_compared
from pfedst.reporting.tuning_table import tuning_table
from tests.reporting.fake_runs import write_comparison

ROWS = {"FedAvg": {0: {"a": 0.5}}, "PFedST": {0: {"a": 0.6}}}
TRIALS = [{"options": {"model.optimizer.lr": lr}, "validation": value} for lr, value in ((0.001, 0.5), (1e-5, None))]
CHOSEN = {"chosen": {"model.optimizer.lr": 0.001}, "trials": TRIALS}


def test_tuning_lists_every_trial(tmp_path) -> None:
    part = {"split_seed": None, "fold": None, **CHOSEN}
    tuned = {"FedAvg": {"parts": [part], "edges": [["model.optimizer.lr", "high"]]}}
    table = tuning_table(load_compared([write_comparison(tmp_path / "c", ROWS, "PFedST", tuned)]))
    assert [cell.text for cell in table.rows[0]] == ["FedAvg", "lr 0.001", "lr 0.001: 50.0, lr 1e-05: -", "lr highest"]
    assert "separate seeds (100)" in table.caption


def test_tuning_of_the_versions_before(tmp_path) -> None:
    """They wrote the choice without folds by itself, and did not look at edges."""
    compared = load_compared([write_comparison(tmp_path / "c", ROWS, "PFedST", {"FedAvg": CHOSEN})])
    (row,) = tuning_table(compared).rows
    assert [cell.text for cell in row] == ["FedAvg", "lr 0.001", "lr 0.001: 50.0, lr 1e-05: -", "not recorded"]
    all_failed = write_comparison(tmp_path / "d", ROWS, "PFedST", {"FedAvg": CHOSEN | {"chosen": None}})
    assert not [note for note in load_compared([all_failed]).notes if "split seed" in note]
