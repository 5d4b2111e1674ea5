"""Counts of predictions by hand, and the calibration errors that they give against those of the metrics."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix

from pfedst.evaluation.counts import prediction_counts
from pfedst.evaluation.metrics import classification_metrics


def test_by_hand() -> None:
    probabilities = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7], [1.0, 0.0]])
    counts = prediction_counts(probabilities, torch.tensor([0, 1, 1, 0]))
    assert counts["confusion"] == [[2, 0], [1, 1]]
    bins = counts["reliability"]
    # of 15 bins 0.6 opens the tenth, 0.7 lies in the eleventh, 0.9 in the fourteenth, 1.0 in the last
    assert [(i, n) for i, n in enumerate(bins["images"]) if n] == [(9, 1), (10, 1), (13, 1), (14, 1)]
    assert [i for i, n in enumerate(bins["right"]) if n] == [10, 13, 14]
    assert [bins["confidence"][i] for i in (9, 10, 13, 14)] == pytest.approx([0.6, 0.7, 0.9, 1.0])
    json.dumps(counts, allow_nan=False)


def test_a_bin_holds_its_lower_edge() -> None:
    edge = torch.linspace(0, 1, 16, dtype=torch.float64)[9].item()
    counts = prediction_counts(torch.tensor([[edge, 1 - edge]], dtype=torch.float64), torch.tensor([0]))
    assert counts["reliability"]["images"].index(1) == 9


def test_a_ruined_model_is_counted_too() -> None:
    ruined = torch.full((2, 3), float("nan"))
    counts = prediction_counts(ruined, torch.tensor([0, 1]))
    json.dumps(counts, allow_nan=False)
    assert counts["reliability"]["images"] == [2] + [0] * 14
    partly = torch.tensor([[float("nan"), 0.0], [1.0, 0.0]])
    for probabilities in (ruined, partly):
        json.dumps(classification_metrics(probabilities, torch.tensor([0, 1])), allow_nan=False)


def test_no_images() -> None:
    counts = prediction_counts(torch.empty(0, 3), torch.empty(0, dtype=torch.long))
    assert counts["confusion"] == [[0] * 3] * 3
    assert sum(counts["reliability"]["images"]) == 0


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 999), st.integers(1, 60), st.integers(2, 6), st.sampled_from([4, 40, 4000]))
def test_they_agree_with_the_metrics(seed, n, classes, sharpness) -> None:
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, classes, (n,), generator=generator)
    probabilities = (sharpness * torch.randn(n, classes, generator=generator)).double().softmax(1)
    counts, metrics = prediction_counts(probabilities, targets), classification_metrics(probabilities, targets)
    expected = confusion_matrix(targets.numpy(), probabilities.argmax(1).numpy(), labels=range(classes))
    assert counts["confusion"] == expected.tolist()
    bins = counts["reliability"]
    gaps = [abs(right - total) for right, total in zip(bins["right"], bins["confidence"], strict=True)]
    assert sum(gaps) / n == pytest.approx(metrics["ece"], abs=1e-5)
    assert sum(bins["images"]) == n
    assert sum(bins["right"]) / n == pytest.approx(metrics["accuracy"])


def test_calibration_by_hand() -> None:
    # two images with confidence 0.8 of which one is right: off by 0.3; each class then 0.3 too
    probabilities = torch.tensor([[0.8, 0.2], [0.8, 0.2]], dtype=torch.float64)
    metrics = classification_metrics(probabilities, torch.tensor([0, 1]))
    assert metrics["ece"] == pytest.approx(0.3)
    assert metrics["classwise_ece"] == pytest.approx(0.3)
    # confidences 1 and 0.95 share the last bin, which is right once in two: off by 0.475
    sure = torch.tensor([[1.0, 0.0], [0.95, 0.05]], dtype=torch.float64)
    assert classification_metrics(sure, torch.tensor([1, 0]))["ece"] == pytest.approx(0.475)
    # three classes, sure and right: nothing off
    right = classification_metrics(torch.eye(3, dtype=torch.float64), torch.arange(3))
    assert right["ece"] == right["classwise_ece"] == 0.0
