"""Metrics at stated priors against those of scikit-learn, and their means over sites by hand."""

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, log_loss

from pfedst.evaluation.metrics import classification_metrics
from pfedst.evaluation.stated import NOT_SHARED, REASON, STATED, stated_over_clients
from pfedst.evaluation.stated_metrics import stated_metrics
from pfedst.seeds import generator

N, K = 200, 4
LOGITS = torch.randn(N, K, generator=generator(1)) * 2
TARGETS = torch.randint(0, 3, (N,), generator=generator(2))  # none of the last class


def test_they_are_those_of_scikit_learn() -> None:
    probabilities = LOGITS.double().softmax(1).numpy()
    predicted, targets = probabilities.argmax(1), TARGETS.numpy()
    assert set(predicted) == {0, 1, 2, 3}
    found = stated_metrics(LOGITS, TARGETS, "site")
    assert found["accuracy"] == pytest.approx(accuracy_score(targets, predicted))
    assert found["macro_f1"] == pytest.approx(f1_score(targets, predicted, labels=[0, 1, 2], average="macro"))
    assert found["nll"] == pytest.approx(log_loss(targets, probabilities, labels=range(K)))
    assert found["brier"] == pytest.approx(((probabilities - np.eye(K)[targets]) ** 2).sum(1).mean())
    # scikit-learn warns of a class that is predicted and absent, and leaves it out, too
    with pytest.warns(UserWarning, match="y_pred contains classes"):
        expected = balanced_accuracy_score(targets, predicted)
    assert stated_metrics(LOGITS, TARGETS, "balanced") == {"balanced_accuracy": pytest.approx(expected)}


def test_they_agree_with_the_metrics_of_a_run() -> None:
    of_run = classification_metrics(LOGITS.double().softmax(1), TARGETS)
    found = stated_metrics(LOGITS, TARGETS, "balanced") | stated_metrics(LOGITS, TARGETS, "federation")
    for metric in ("balanced_accuracy", "accuracy", "macro_f1", "ece"):
        assert found[metric] == pytest.approx(of_run[metric], abs=1e-6)


@pytest.mark.parametrize("prior", STATED)
def test_without_images_none_is_defined_and_nan_defines_no_probability(prior) -> None:
    empty = stated_metrics(torch.empty(0, 1), torch.empty(0, dtype=torch.long), prior)
    assert empty == dict.fromkeys(STATED[prior])
    broken = stated_metrics(torch.full((2, K), float("nan")), torch.tensor([0, 1]), prior)
    assert broken.keys() == empty.keys()
    assert broken.get("nll") is broken.get("brier") is None


def test_a_certain_and_wrong_prediction_has_a_finite_loss() -> None:
    found = stated_metrics(torch.tensor([[1000.0, -1000.0]]), torch.tensor([1]), "site")
    assert (found["nll"], found["brier"]) == (pytest.approx(2000), pytest.approx(2))


def test_means_over_sites_by_hand() -> None:
    a, b, c = ({"balanced": {"balanced_accuracy": v}} for v in (0.2, 0.6, 0.9))
    found = stated_over_clients({"b": b, "a": a, "c": c}, held_out=["c"])
    assert list(found) == ["balanced"]
    assert list(found["balanced"]["clients"]) == ["a", "b", "c"]
    assert found["balanced"]["mean"] == {"balanced_accuracy": pytest.approx(0.4)}


def test_a_site_without_images_and_one_with_a_reason_are_in_no_mean() -> None:
    a, b, c = {"accuracy": 0.5}, {"accuracy": None}, {REASON: NOT_SHARED}
    found = stated_over_clients({"a": {"site": a}, "b": {"site": b}, "c": {"site": c}, "d": {}})
    assert found["site"]["mean"] == {"accuracy": 0.5, "macro_f1": None, "ece": None, "nll": None, "brier": None}
    assert list(found["site"]["clients"]) == ["a", "b", "c"]
