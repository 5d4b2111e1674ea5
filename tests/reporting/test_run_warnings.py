"""Warnings about models: which are raised and ended, once each, and what they say."""

from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pfedst_baselines.fedavg import FedAvg
from pfedst_baselines.pooled import Pooled

from pfedst.evaluation.evaluate import Evaluated
from pfedst.reporting.run_warnings import (
    RunWarnings,
    fewest_images,
    only_class,
    start_is_best,
    warning_text,
    what_to_try,
)

CLASSES = ["nevus", "melanoma"]
EMPTY = [[0, 0], [0, 0]]


def recall_mean(confusion):
    """Balanced accuracy by hand; None without images."""
    recalls = [row[index] / sum(row) for index, row in enumerate(confusion) if any(row)]
    return sum(recalls) / len(recalls) if recalls else None


def evaluation(validation, test=None):
    """Of confusions by site."""
    splits = {"validation": validation, "test": test or validation}
    return {
        split: {
            "personal": {
                site: Evaluated({"balanced_accuracy": recall_mean(confusion)}, {"confusion": confusion})
                for site, confusion in sites.items()
            }
        }
        for split, sites in splits.items()
    }


GOOD, ONE_CLASS, WORSE = [[40, 10], [10, 40]], [[50, 0], [50, 0]], [[40, 10], [30, 20]]


def of(warnings, site):
    return [found["what"] for found in warnings.current if found["site"] == site]


def test_one_class_is_reported_once_and_its_end_once() -> None:
    warnings = RunWarnings(CLASSES, (), ["--model.loss BalancedSoftmax"])
    assert warnings.add(0, evaluation({"a": GOOD, "b": GOOD})) == []
    lines = warnings.add(1, evaluation({"a": ONE_CLASS, "b": GOOD}))
    assert lines[0] == "round 1: site a: the model predicts only nevus for all 100 validation images"
    assert lines[-1] == "round 1: what may help: --model.loss BalancedSoftmax"
    assert of(warnings, "a") == ["one_class", "below_start"]
    assert of(warnings, "b") == []
    assert warnings.add(3, evaluation({"a": ONE_CLASS, "b": GOOD})) == []
    assert [(found["round"], found["since"]) for found in warnings.current] == [(3, 1)] * 3
    assert warnings.add(4, evaluation({"a": GOOD, "b": GOOD})) == [
        "round 4: site a: the model no longer predicts one class only",
        "round 4: site a: the model is no longer below its start",
        "round 4: mean over sites: the model is no longer below its start",
    ]
    assert warnings.current == []
    again = warnings.add(5, evaluation({"a": ONE_CLASS, "b": GOOD}))
    assert len(again) == 3
    assert "may help" not in again[-1], "that is reported once a run"


def test_a_difference_that_grows_from_a_handful_of_images_is_reported_again() -> None:
    warnings = RunWarnings(CLASSES, ())
    warnings.add(0, evaluation({"a": GOOD}))
    (site, mean) = warnings.add(1, evaluation({"a": [[38, 12], [10, 40]]}))
    assert site.endswith(
        "site a: the model is 2.0 points below its start in balanced accuracy (80.0 % at round 0, 78.0 % now; 100 "
        "validation images); 2 images could cause this difference, so it may be chance"
    )
    assert mean.startswith("round 1: mean over sites: the model is 2.0 points")
    assert warnings.add(2, evaluation({"a": [[39, 11], [10, 40]]})) == []
    (site, _) = warnings.add(3, evaluation({"a": WORSE}))
    assert site.endswith("(80.0 % at round 0, 60.0 % now; 100 validation images); that is 20 images or more")
    assert warnings.current[0]["since"] == 1


def test_a_site_without_validation_images_is_judged_on_test_and_takes_no_part_in_the_mean() -> None:
    warnings = RunWarnings(CLASSES, ())
    warnings.add(0, evaluation({"a": GOOD, "b": EMPTY}, {"a": GOOD, "b": GOOD}))
    (line,) = warnings.add(1, evaluation({"a": GOOD, "b": EMPTY}, {"a": WORSE, "b": [[40, 10], [30, 20]]}))
    assert line.startswith("round 1: site b: ")
    assert "100 test images" in line
    nowhere = RunWarnings(CLASSES, ())
    nowhere.add(0, evaluation({"a": EMPTY}, {"a": GOOD}))
    assert [found["split"] for found in nowhere.current] == []
    assert len(nowhere.add(1, evaluation({"a": EMPTY}, {"a": WORSE}))) == 2


def test_a_site_without_a_start_is_compared_with_none_and_takes_no_part_in_the_mean() -> None:
    """Site b could not be evaluated at the start, and site c only there."""
    warnings = RunWarnings(["x", "y"], ())
    warnings.add(0, evaluation({"a": GOOD, "c": WORSE}))
    warnings.add(1, evaluation({"a": WORSE, "b": ONE_CLASS}))
    assert [of(warnings, site) for site in ("a", "b", "c", None)] == [
        ["below_start"],
        ["one_class"],
        [],
        ["below_start"],
    ]
    (mean,) = [found for found in warnings.current if found["site"] is None]
    assert (mean["start"], mean["now"], mean["images"]) == (pytest.approx(0.8), pytest.approx(0.6), 100)


def test_the_mean_leaves_out_sites_that_are_held_out() -> None:
    warnings = RunWarnings(CLASSES, ("b",))
    warnings.add(0, evaluation({"a": GOOD, "b": GOOD}))
    warnings.add(1, evaluation({"a": GOOD, "b": ONE_CLASS}))
    assert of(warnings, "b") == ["one_class", "below_start"]
    assert of(warnings, None) == []


def test_the_start_may_predict_one_class_and_nothing_is_advised_before_training() -> None:
    warnings = RunWarnings(CLASSES, (), ["more rounds"])
    assert len(warnings.add(0, evaluation({"a": ONE_CLASS}))) == 1


@pytest.mark.parametrize(
    ("confusion", "found"),
    [
        ([[5, 0], [3, 0]], 0),
        ([[0, 5], [0, 3]], 1),
        ([[5, 0], [2, 1]], None),
        ([[5, 0], [0, 0]], None),  # its images are of one class: it is right
        ([[0, 5], [0, 0]], None),  # of one class again: nothing else could be told apart
        (EMPTY, None),
        ([], None),
    ],
)
def test_one_class_only_counts_where_the_images_have_several(confusion, found) -> None:
    assert only_class(confusion) == found


@given(
    st.lists(
        st.lists(st.lists(st.integers(0, 3), min_size=2, max_size=2), min_size=2, max_size=2), min_size=1, max_size=2
    ),
    st.floats(0.01, 1),
)
def test_the_fewest_images_are_those_of_a_search_over_all_corrections(confusions, share) -> None:
    confusions = [confusion for confusion in confusions if sum(map(sum, confusion))]
    if not confusions:
        return
    now = sum(map(recall_mean, confusions)) / len(confusions)
    margin = share * (1 - now)
    if margin < 1e-6:
        return
    wrong = [(site, row, 1 - row) for site in range(len(confusions)) for row in range(2)]
    best = None
    for counts in product(*(range(confusions[site][row][other] + 1) for site, row, other in wrong)):
        fixed = [[list(row) for row in confusion] for confusion in confusions]
        for (site, row, other), count in zip(wrong, counts, strict=True):
            fixed[site][row][other] -= count
            fixed[site][row][row] += count
        if sum(map(recall_mean, fixed)) / len(fixed) - now >= margin - 1e-9:
            best = min(sum(counts), best or 99)
    assert fewest_images(confusions, margin) == best


PROTOCOL = {
    "rounds": 5,
    "loss": "CrossEntropy()",
    "optimizer": {"class": "AdamW", "lr": 0.001},
    "optimizer_state": "reset",
    "samples": {"a": {}, "b": {}},
}


def test_one_image_is_one_image_in_the_rounding_of_float32() -> None:
    six = [[6, 0, 0], [0, 2, 4], [0, 4, 2]]  # 6, 2 and 2 of 6: an image is 1/18
    start = float(torch.tensor([1, 1 / 3, 1 / 3], dtype=torch.float32).mean())
    assert fewest_images([six], start - (10 / 18 - 1 / 18)) == 1


def test_only_options_that_are_not_set_are_advised() -> None:
    assert what_to_try(FedAvg(weighting="samples"), PROTOCOL) == [
        "--model.loss BalancedSoftmax",
        "a lower --model.optimizer.lr than 0.001",
        "--coordinator.optimizer_state keep",
        "--coordinator.lr_schedule cosine",
        "more --coordinator.rounds than 5",
        "--method.weighting uniform",
    ]
    set_already = PROTOCOL | {"loss": "BalancedSoftmax(tau=1.0)", "optimizer_state": "keep", "lr_schedule": "step"}
    least = ["a lower --model.optimizer.lr than 0.001", "more --coordinator.rounds than 5"]
    assert what_to_try(FedAvg(weighting="uniform"), set_already) == least
    assert what_to_try(FedAvg(merge_rule="median"), set_already) == least
    assert what_to_try(Pooled(), set_already) == least
    assert what_to_try(FedAvg(), PROTOCOL | {"rounds": 0}) == []


def test_a_run_that_is_best_at_its_start_is_loud() -> None:
    assert "NO ROUND IS BETTER THAN THE START" in warning_text(start_is_best(3, 0.5, 0.4, 10))
    assert "50.0 %, - after round 3; 10 validation images)" in warning_text(start_is_best(3, 0.5, None, 10))
    assert "is worse than what the run began with" in warning_text(start_is_best(3, 0.5, 0.4, 10))
    assert "is no better than what the run began with" in warning_text(start_is_best(3, 0.5, 0.5, 10))
