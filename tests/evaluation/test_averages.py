"""Averages over clients by hand."""

import pytest

from pfedst.evaluation import over_clients
from pfedst.evaluation.averages import metric_names


def metric(value, auroc=None):
    calibration = {"ece": value, "classwise_ece": value}
    return {"balanced_accuracy": value, "auroc": auroc, "macro_f1": value, "accuracy": value} | calibration


ONE_VALUE = {"a": 0.4, "b": 0.6, "far": 1.0}


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


def test_what_is_held_out_is_in_no_other_column() -> None:
    clients = {name: dict.fromkeys(metric_names(ordinal=False), value) for name, value in ONE_VALUE.items()}
    found = over_clients(clients, {"a": 1, "b": 3, "far": 10}, ["far"])
    assert set(found["clients"]) == {"a", "b", "far"}
    columns = {column: found[column]["auroc"] for column in found if column != "clients"}
    expected = {"mean": 0.5, "weighted_mean": 0.55, "worst": 0.4, "std": 0.1, "held_out_mean": 1.0}
    assert columns == pytest.approx(expected)
    assert "held_out_mean" not in over_clients(clients, {"a": 1, "b": 3, "far": 10})


def test_undefined_everywhere_stays_undefined() -> None:
    summary = over_clients({"a": dict.fromkeys(metric(0.0))}, {"a": 0})
    assert all(summary[column]["accuracy"] is None for column in ("mean", "weighted_mean", "worst", "std"))
