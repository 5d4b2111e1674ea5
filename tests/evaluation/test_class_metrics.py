"""Sensitivity, specificity and average precision of a class: by hand, against scikit-learn, and their intervals."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, recall_score

from pfedst.evaluation import bootstrap
from pfedst.evaluation.averages import CLASS_METRICS
from pfedst.evaluation.bootstrap import FEWEST_UNITS, INTERVAL
from pfedst.evaluation.class_metrics import class_metrics


def of_one(probabilities, targets, units=None, seed=0):
    """The tables of the classes of one model."""
    units = np.arange(len(targets)) if units is None else units
    return class_metrics({"m": np.asarray(probabilities)}, np.asarray(targets), np.asarray(units), seed)["m"]


def values(table):
    return {metric: table[metric]["value"] for metric in CLASS_METRICS}


def test_by_hand() -> None:
    """Class 1 has the scores 0.9, 0.6 and 0.4 of which the first and the last are positive."""
    found = of_one([[0.1, 0.9], [0.4, 0.6], [0.6, 0.4]], [1, 0, 1])
    assert values(found[1]) == pytest.approx({"sensitivity": 1 / 2, "specificity": 0, "average_precision": 5 / 6})
    assert values(found[0]) == pytest.approx({"sensitivity": 0, "specificity": 1 / 2, "average_precision": 1 / 2})
    assert (found[1]["images"], found[1]["units"], found[1]["other_units"]) == (2, 2, 1)


@settings(max_examples=60)
@given(st.data())
def test_as_scikit_learn_has_them(data) -> None:
    """Also with ties, which a few levels of probability make, and with classes that are absent."""
    classes, images = data.draw(st.integers(2, 4)), data.draw(st.integers(1, 30))
    draw = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    levels = draw.integers(0, 5, (images, classes)) + 0.0 + (data.draw(st.booleans()) * draw.random((images, classes)))
    probabilities = np.exp(levels) / np.exp(levels).sum(1, keepdims=True)
    targets = draw.integers(0, data.draw(st.integers(1, classes)), images)
    predicted = probabilities.argmax(1)
    for index, table in enumerate(of_one(probabilities, targets)):
        positive = targets == index
        assert table["images"] == positive.sum()
        expected = {
            "sensitivity": recall_score(positive, predicted == index) if positive.any() else None,
            "specificity": recall_score(~positive, predicted != index) if not positive.all() else None,
            "average_precision": average_precision_score(positive, probabilities[:, index])
            if positive.any() and not positive.all()
            else None,
        }
        assert values(table) == pytest.approx(expected)


def test_resamples_are_those_of_scikit_learn(monkeypatch) -> None:
    """Each resample as a list of images, in which a drawn patient brings all his images."""
    monkeypatch.setattr(bootstrap, "RESAMPLES", 60)
    monkeypatch.setattr(bootstrap, "MOST_WEIGHTS", 300)  # several parts
    draw = np.random.default_rng(0)
    units, targets = draw.permutation(np.repeat(np.arange(20), 3)), draw.integers(0, 3, 60)
    probabilities = draw.dirichlet([1, 1, 1], 60).round(1)  # with ties
    predicted, found = probabilities.argmax(1), of_one(probabilities, targets, units, seed=7)
    drawn = bootstrap.draw(20, 7)
    images = [np.repeat(np.arange(60), times[units]) for times in drawn]
    assert drawn.sum(1).tolist() == [20] * 60
    for index, table in enumerate(found):
        hit, positive = predicted == index, targets == index
        resampled = {
            "sensitivity": [recall_score(positive[i], hit[i]) for i in images],
            "specificity": [recall_score(~positive[i], ~hit[i]) for i in images],
            "average_precision": [average_precision_score(positive[i], probabilities[i, index]) for i in images],
        }
        for metric, of_resamples in resampled.items():
            low, high = np.quantile(of_resamples, INTERVAL)
            assert (table[metric]["low"], table[metric]["high"]) == pytest.approx((low, high)), metric


def test_several_images_of_a_patient_are_no_more_certain_than_one() -> None:
    """Ten copies of each image: over images the interval would be a third as wide."""
    draw = np.random.default_rng(0)
    probabilities, targets = draw.dirichlet([1, 1], 40), draw.integers(0, 2, 40)
    one = of_one(probabilities, targets, np.arange(40))
    copies = np.repeat(np.arange(40), 10)
    assert of_one(probabilities[copies], targets[copies], copies)[0]["sensitivity"] == one[0]["sensitivity"]
    apart = of_one(probabilities[copies], targets[copies])[0]["sensitivity"]
    wide = one[0]["sensitivity"]["high"] - one[0]["sensitivity"]["low"]
    assert (apart["high"] - apart["low"]) / wide == pytest.approx(10**-0.5, rel=0.15)


def test_what_is_not_defined_is_none() -> None:
    two, other = of_one([[0.9, 0.1], [0.2, 0.8]], [0, 0])
    nothing = {"value": None, "low": None, "high": None}
    assert values(two) == {"sensitivity": 0.5, "specificity": None, "average_precision": None}
    assert other["sensitivity"] == other["average_precision"] == nothing
    assert other["specificity"]["value"] == 0.5
    for table in of_one(np.empty((0, 2)), np.empty(0, int)):
        assert [table[metric] for metric in CLASS_METRICS] == [nothing] * 3
    ruined = of_one(np.full((3, 2), np.nan), [0, 1, 1])
    json.dumps(ruined, allow_nan=False)


def test_there_is_no_interval_where_nothing_can_be_claimed() -> None:
    targets = np.array([0] * FEWEST_UNITS + [1] * 20)
    draw = np.random.default_rng(1)
    scores = draw.random(len(targets))
    scores[0], scores[1] = 0.9, 0.1  # one is found, one is not
    first = of_one(np.stack([scores, 1 - scores], 1), targets)[0]
    assert first["sensitivity"]["low"] < first["sensitivity"]["value"] < first["sensitivity"]["high"]
    fewer = of_one(np.stack([scores, 1 - scores], 1)[1:], targets[1:])[0]
    assert fewer["sensitivity"]["low"] is fewer["average_precision"]["low"] is None
    assert fewer["specificity"]["low"] is not None, "of the other class there are enough"
    # as many images of fewer patients are not enough, and a resample of what all agree has no spread
    units = np.array([0, 0, 1, 2, 3, *range(4, 24)])
    assert of_one(np.stack([scores, 1 - scores], 1), targets, units)[0]["sensitivity"]["low"] is None
    perfect = of_one(np.eye(2)[targets], targets)
    assert perfect[0]["sensitivity"] == {"value": 1.0, "low": None, "high": None}


def test_the_seed_decides_the_resamples() -> None:
    draw = np.random.default_rng(0)
    probabilities, targets = draw.dirichlet([1, 1], 40), draw.integers(0, 2, 40)
    assert of_one(probabilities, targets, seed=1) == of_one(probabilities, targets, seed=1)
    assert of_one(probabilities, targets, seed=1) != of_one(probabilities, targets, seed=2)
