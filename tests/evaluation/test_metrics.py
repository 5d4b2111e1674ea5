"""Metrics against scikit-learn and by hand; absent classes do not count."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, balanced_accuracy_score, cohen_kappa_score, f1_score, roc_auc_score

from pfedst.encoders.spec import Taps
from pfedst.evaluation import METRICS, over_clients
from pfedst.evaluation.evaluate import evaluate
from pfedst.evaluation.metrics import classification_metrics


def random_case(seed, n, classes, present):
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, present, (n,), generator=generator)
    return torch.rand(n, classes, generator=generator).softmax(1), targets


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 999), st.integers(2, 40), st.integers(2, 8), st.integers(1, 8))
def test_against_scikit_learn(seed, n, classes, present) -> None:
    probabilities, targets = random_case(seed, n, classes, min(present, classes))
    found = classification_metrics(probabilities, targets)
    y, predicted = targets.numpy(), probabilities.argmax(1).numpy()
    there = np.unique(y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns of classes that are predicted but absent
        assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(y, predicted), abs=1e-6)
        assert found["accuracy"] == pytest.approx(accuracy_score(y, predicted), abs=1e-6)
        macro = f1_score(y, predicted, labels=there, average="macro", zero_division=0)
        assert found["macro_f1"] == pytest.approx(macro, abs=1e-6)
    if len(there) > 1:
        areas = [roc_auc_score(y == c, probabilities[:, c].numpy()) for c in there]
        assert found["auroc"] == pytest.approx(np.mean(areas), abs=1e-6)
    else:
        assert found["auroc"] is None


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 999), st.integers(6, 60), st.integers(2, 6))
def test_grades_against_scikit_learn(seed, n, classes) -> None:
    probabilities, targets = random_case(seed, n, classes, classes)
    found = classification_metrics(probabilities.double(), targets, ordinal=True)
    y, predicted = targets.numpy(), probabilities.argmax(1).numpy()
    kappa = cohen_kappa_score(y, predicted, weights="quadratic", labels=range(classes))
    assert found["quadratic_kappa"] == pytest.approx(kappa, abs=1e-6, nan_ok=False)
    if len(np.unique(y)) == classes > 2:  # scikit-learn wants every class; two are its binary case
        areas = roc_auc_score(y, torch.nn.functional.normalize(probabilities.double(), 1, 1).numpy(), multi_class="ovo")
        assert found["auroc_ovo"] == pytest.approx(areas, abs=1e-6)


def test_grades_by_hand() -> None:
    probabilities = torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.1, 0.8], [0.1, 0.1, 0.8], [0.2, 0.1, 0.7]])
    found = classification_metrics(probabilities, torch.tensor([0, 2, 2, 0]), ordinal=True)
    # one image of four is two grades off: 1 - (4 / 4) / (8 / 16 + 24 / 16) with all off-diagonal weights 4
    assert found["quadratic_kappa"] == pytest.approx(0.5)
    assert found["auroc_ovo"] == 1.0
    one_class = classification_metrics(probabilities[:1], torch.tensor([0]), ordinal=True)
    assert one_class["quadratic_kappa"] is one_class["auroc_ovo"] is None
    none = classification_metrics(torch.empty(0, 3), torch.empty(0, dtype=torch.long), ordinal=True)
    assert set(none.values()) == {None}
    assert set(over_clients({"a": found, "b": none}, {"a": 4, "b": 0})["mean"]) == set(found)
    assert "quadratic_kappa" not in classification_metrics(probabilities, torch.tensor([0, 2, 2, 0]))


def test_an_absent_class_does_not_count() -> None:
    probabilities = torch.tensor([[0.9, 0.05, 0.05], [0.1, 0.8, 0.1], [0.2, 0.7, 0.1]])
    found = classification_metrics(probabilities, torch.tensor([0, 1, 1]))
    # counting class 2 as 0 would give 2/3
    assert [found[name] for name in METRICS] == [1.0, 1.0, 1.0, 1.0]


def test_no_samples_no_numbers() -> None:
    assert set(classification_metrics(torch.empty(0, 3), torch.empty(0, dtype=torch.long)).values()) == {None}


def test_evaluate_runs_the_encoder_once_for_all_models() -> None:
    passes = []

    def taps_of(images):
        passes.append(len(images))
        return Taps("pooled", (images.flatten(1),))

    batches = [
        (torch.eye(3)[:2].reshape(2, 3, 1, 1), torch.tensor([0, 1])),
        (torch.eye(3)[2:].reshape(1, 3, 1, 1), torch.tensor([2])),
    ]
    models = {"right": lambda taps: taps.tensors[0] * 9, "wrong": lambda taps: taps.tensors[0].roll(1, 1) * 9}
    found, logits, targets = evaluate(models, taps_of, batches, torch.device("cpu"))
    assert passes == [2, 1]
    assert found["right"].metrics["accuracy"] == 1.0
    assert found["right"].counts["confusion"] == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    assert found["wrong"].metrics["accuracy"] == 0.0
    assert found["wrong"].counts["confusion"] == [[0, 1, 0], [0, 0, 1], [1, 0, 0]]
    assert torch.equal(logits["right"], torch.eye(3) * 9)
    assert targets.tolist() == [0, 1, 2]
    assert evaluate(models, taps_of, [], torch.device("cpu"))[0]["right"].metrics["accuracy"] is None
