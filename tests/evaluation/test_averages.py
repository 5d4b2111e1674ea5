"""Averages over clients by hand."""

from pfedst.evaluation import over_clients


def metric(value, auroc=None):
    calibration = {"ece": value, "classwise_ece": value}
    return {"balanced_accuracy": value, "auroc": auroc, "macro_f1": value, "accuracy": value} | calibration


def test_over_clients_by_hand() -> None:
    summary = over_clients({"b": metric(0.5, 0.9), "a": metric(1.0)}, {"a": 30, "b": 10})
    assert list(summary["clients"]) == ["a", "b"]
    assert summary["mean"]["accuracy"] == 0.75
    assert summary["weighted_mean"]["accuracy"] == 0.875
    assert summary["worst"]["accuracy"] == 0.5
    assert summary["worst"]["ece"] == summary["worst"]["classwise_ece"] == 1.0  # of an error the highest is the worst
    assert summary["std"]["accuracy"] == 0.25
    # client a has no AUROC: the summary is over b alone
    assert summary["mean"]["auroc"] == summary["worst"]["auroc"] == summary["weighted_mean"]["auroc"] == 0.9


def test_undefined_everywhere_stays_undefined() -> None:
    summary = over_clients({"a": dict.fromkeys(metric(0.0))}, {"a": 0})
    assert all(summary[column]["accuracy"] is None for column in ("mean", "weighted_mean", "worst", "std"))
