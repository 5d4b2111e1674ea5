"""Accuracy, balanced accuracy and AUROC with intervals: by hand, as of `classification_metrics`, and in resamples."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pfedst.evaluation import bootstrap
from pfedst.evaluation.averages import SITE_METRICS
from pfedst.evaluation.bootstrap import FEWEST_UNITS, INTERVAL
from pfedst.evaluation.metrics import classification_metrics
from pfedst.evaluation.site_metrics import site_metrics


def of_one(probabilities, targets, units=None, seed=0):
    units = np.arange(len(targets)) if units is None else units
    return site_metrics({"m": np.asarray(probabilities)}, np.asarray(targets), np.asarray(units), seed)


def test_by_hand() -> None:
    """Of class 1 the image with 0.4 is missed: recalls 1 and 1/2. Of the pairs (0.9, 0.3) and (0.4, 0.3) all are right."""
    found = of_one([[0.7, 0.3], [0.1, 0.9], [0.6, 0.4]], [0, 1, 1], ["p", "q", "q"])
    values = {metric: found["m"][metric]["value"] for metric in SITE_METRICS}
    assert values == pytest.approx({"accuracy": 2 / 3, "balanced_accuracy": 3 / 4, "auroc": 1.0})
    assert (found["images"], found["units"], found["classes"], found["rare_classes"]) == (3, 2, 2, 2)
    assert all(found["m"][metric]["low"] is None for metric in SITE_METRICS), "two patients are too few"


@settings(max_examples=40)
@given(st.data())
def test_the_values_are_those_of_the_summary(data) -> None:
    """Also with ties, which a few levels of probability make, and with classes that are absent."""
    classes, images = data.draw(st.integers(2, 4)), data.draw(st.integers(0, 30))
    draw = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    levels = draw.integers(0, 5, (images, classes)) + 0.0
    probabilities = np.exp(levels) / np.exp(levels).sum(1, keepdims=True)
    targets = draw.integers(0, data.draw(st.integers(1, classes)), images)
    found, expected = of_one(probabilities, targets), None
    expected = classification_metrics(torch.from_numpy(probabilities), torch.from_numpy(targets))
    for metric in SITE_METRICS:
        assert found["m"][metric]["value"] == pytest.approx(expected[metric]), metric


def test_each_resample_has_the_metrics_of_its_images(monkeypatch) -> None:
    """A drawn patient brings all his images, as many times as he is drawn."""
    monkeypatch.setattr(bootstrap, "RESAMPLES", 40)
    monkeypatch.setattr(bootstrap, "MOST_WEIGHTS", 300)  # several parts
    draw = np.random.default_rng(0)
    units, targets = draw.permutation(np.repeat(np.arange(20), 3)), draw.integers(0, 3, 60)
    targets[:57] = targets[:57].clip(max=1)  # the last class is rare, and missing in some resamples
    probabilities = draw.dirichlet([1, 1, 1], 60).round(1)
    found = of_one(probabilities, targets, units, seed=7)
    samples = [np.repeat(np.arange(60), times[units]) for times in bootstrap.draw(20, 7)]
    of_samples = [
        classification_metrics(torch.from_numpy(probabilities[i]), torch.from_numpy(targets[i])) for i in samples
    ]
    for metric in SITE_METRICS:
        low, high = np.quantile([sample[metric] for sample in of_samples], INTERVAL)
        assert (found["m"][metric]["low"], found["m"][metric]["high"]) == pytest.approx((low, high)), metric
    assert 1 <= found["rare_classes"] < found["classes"]


def test_without_images_and_with_one_class_nothing_is_invented() -> None:
    nothing = {"value": None, "low": None, "high": None}
    assert of_one(np.empty((0, 2)), np.empty(0, int))["m"] == dict.fromkeys(SITE_METRICS, nothing)
    one_class = of_one(np.tile([0.9, 0.1], (FEWEST_UNITS, 1)), [0] * FEWEST_UNITS)["m"]
    assert one_class["auroc"] == nothing
    assert one_class["accuracy"] == {"value": 1.0, "low": None, "high": None}, "all resamples agree"
