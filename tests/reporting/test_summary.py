"""Which round of a run is the best on validation, and which sites a mean is over."""

import pytest

from pfedst.evaluation.averages import metric_names
from pfedst.evaluation.evaluate import Evaluated
from pfedst.reporting.summary import RunSummary, of_model

SITES = ("a", "b", "held_out")
METRICS = metric_names(ordinal=False)


def evaluation(**scores):
    """All metrics of a site have one value, the same on both splits."""
    confusion = {"confusion": [[1, 1], [1, 1]]}
    sites = {site: Evaluated(dict.fromkeys(METRICS, score), confusion) for site, score in scores.items()}
    return {split: {"personal": dict(sites), "generic": dict(sites)} for split in ("validation", "test")}


def summary():
    samples = {site: {"train": 4, "validation": 4, "test": 4} for site in SITES}
    protocol = {"classes": ["x", "y"], "samples": samples, "held_out_sites": ["held_out"]}
    return RunSummary(protocol | {"parameters_trained": 1, "parameters_sent": 1}, {})


@pytest.mark.parametrize(
    ("rounds", "best"),
    [
        # all sites, always: the highest mean, and of equal ones the first
        ([{"a": 0.1, "b": 0.1}, {"a": 0.5, "b": 0.3}, {"a": 0.4, "b": 0.4}], 1),
        # a round with fewer sites is not compared, however high its mean
        ([{"a": 0.1, "b": 0.1}, {"a": 0.9}, {"a": 0.2, "b": 0.2}, {"a": 0.9}], 2),
        # the first round with all sites takes the place of one with fewer, however low its mean
        ([{"a": 0.9}, {"a": 0.1, "b": 0.1}, {"a": 0.3}], 1),
        # a site that is never evaluated: rounds are compared over the other
        ([{"a": 0.2}, {"a": 0.4}, {"a": 0.3}], 1),
        # another site, as many: the first
        ([{"a": 0.2}, {"b": 0.4}, {"a": 0.3}], 2),
        # a held-out site is in no mean
        ([{"a": 0.2, "b": 0.2, "held_out": 0.1}, {"a": 0.3, "b": 0.3}], 1),
        # a metric that is not defined
        ([{"a": None, "b": 0.2}, {"a": None, "b": 0.3}], 1),
        ([{"a": None, "b": None}], None),
    ],
)
def test_rounds_are_compared_over_the_same_sites(rounds, best) -> None:
    found = summary()
    for number, scores in enumerate(rounds):
        found.add_round(number, {}, {}, evaluation(**scores))
    assert found.best_round == best
    missing = {site: [n for n, scores in enumerate(rounds) if site not in scores] for site in SITES}
    assert found.not_evaluated == {site: numbers for site, numbers in missing.items() if numbers}


def test_the_start_is_not_called_the_best_round_if_no_other_has_its_sites() -> None:
    found = summary()
    for number, scores in enumerate([{"a": 0.5, "b": 0.5}, {"a": 0.1}]):
        found.add_round(number, {}, {}, evaluation(**scores))
    assert found.best_round == 0
    assert "start_is_best" not in [warning["what"] for warning in found._all_warnings()]


def test_a_site_that_was_not_evaluated_has_no_numbers_and_is_in_no_mean() -> None:
    sizes = {"a": 1, "b": 1, "c": 8}
    clients = evaluation(a=0.2, b=0.4)["test"]["personal"]
    found = of_model(clients, sizes)
    assert found["clients"]["c"] == dict.fromkeys(METRICS)
    assert found["not_evaluated"] == ["c"]
    assert list(found["counts"]) == ["a", "b"]
    assert found["mean"]["balanced_accuracy"] == pytest.approx(0.3)
    assert found["weighted_mean"]["balanced_accuracy"] == pytest.approx(0.3)
    assert "not_evaluated" not in of_model(clients, {"a": 1, "b": 1})
