"""Temperature and change of prior: both recovered from simulated images, the fit against scipy, and refusals."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from pfedst.evaluation.calibration import (
    DEVIATION,
    FEWEST_IMAGES,
    NOT_FINITE,
    TOO_FEW,
    Fitted,
    best_temperature,
    calibrated,
    fit_temperature,
    image_losses,
    temperatures,
)
from pfedst.seeds import generator

EFFECTIVE, SITE, TARGET = (
    torch.tensor(p, dtype=torch.float64) for p in ((0.2, 0.3, 0.5), (0.7, 0.2, 0.1), (0.1, 0.1, 0.8))
)
MEANS = torch.tensor([[0.0, 0.0], [1.5, 0.0], [0.0, 1.5]], dtype=torch.float64)


def images(prior, number, seed):
    """Labels of a prior, and the log-likelihood (N, K) of each class: images of a class look alike everywhere."""
    source = generator(seed)
    labels = torch.multinomial(prior, number, replacement=True, generator=source)
    points = MEANS[labels] + torch.randn(number, 2, generator=source, dtype=torch.float64)
    return labels, -(points[:, None] - MEANS).square().sum(2) / 2


def wrong_by(temperature, likelihood):
    """Logits of a model that learned EFFECTIVE and is too confident by a factor."""
    return temperature * (likelihood + EFFECTIVE.log())


def nll(logarithms, labels):
    return -float(logarithms.gather(1, labels[:, None]).mean())


@pytest.mark.parametrize("true", [0.6, 1.0, 2.5])
def test_temperature_and_change_of_prior_are_recovered(true) -> None:
    labels, likelihood = images(SITE, 20_000, 1)
    losses = image_losses(wrong_by(true, likelihood), labels, EFFECTIVE, SITE, floor=False).sum(1)
    found = best_temperature(losses, floor=False)
    assert found == pytest.approx(true, rel=0.05)
    # at another hospital: the posterior is that of Bayes, and a prior that is divided by T is another one
    elsewhere, likelihood = images(TARGET, 20_000, 2)
    made = calibrated(wrong_by(true, likelihood), true, EFFECTIVE, TARGET)
    assert torch.allclose(made, (likelihood + TARGET.log()).log_softmax(1))
    fitted = nll(calibrated(wrong_by(true, likelihood), found, EFFECTIVE, TARGET), elsewhere)
    divided = ((wrong_by(true, likelihood) - EFFECTIVE.log() + TARGET.log()) / found).log_softmax(1)
    assert fitted < nll(divided, elsewhere) - (0.002 if true != 1 else -1e-3)


def test_by_hand() -> None:
    """Two classes: logit difference 2, learned odds 3, odds of the target 1/3, T = 2."""
    effective, target = (torch.tensor(p) for p in ((0.75, 0.25), (0.25, 0.75)))
    found = calibrated(torch.tensor([[2.0, 0.0]]), 2.0, effective, target)
    assert found.dtype == torch.float64
    assert float(found[0, 0] - found[0, 1]) == pytest.approx(2 / 2 - math.log(3) - math.log(3), abs=1e-6)
    assert float(found.exp().sum()) == pytest.approx(1)


def test_of_one_temperature_the_prior_of_training_leaves_the_logits() -> None:
    logits = torch.randn(5, 3, generator=generator(0))
    assert torch.allclose(calibrated(logits, 1.0, EFFECTIVE), logits.double().log_softmax(1))
    assert torch.allclose(calibrated(logits, 1.0, EFFECTIVE, EFFECTIVE), logits.double().log_softmax(1))
    assert torch.allclose(calibrated(logits, 3.0), (logits.double() / 3).log_softmax(1))
    with pytest.raises(ValueError, match="no change of prior"):
        calibrated(logits, 1.0, None, TARGET)


frequencies = st.lists(st.floats(0.01, 1), min_size=3, max_size=3).map(
    lambda values: torch.tensor(values, dtype=torch.float64) / math.fsum(values)
)
three_logits = st.lists(st.floats(-30, 30), min_size=3, max_size=3).map(lambda values: torch.tensor([values]))


@given(three_logits, st.floats(0.1, 10), frequencies, frequencies, frequencies)
def test_they_are_probabilities_and_a_change_of_prior_is_not_divided(
    logits, temperature, effective, site, target
) -> None:
    at_site = calibrated(logits, temperature, effective, site)
    assert float(at_site.exp().sum()) == pytest.approx(1)
    changed = calibrated(logits, temperature, effective, target)
    assert torch.allclose(changed, (at_site - site.log() + target.log()).log_softmax(1))
    # at the prior that the model has learned a temperature changes no prediction
    for learned in (calibrated(logits, temperature, effective), calibrated(logits, temperature, effective, effective)):
        assert logits.max() - logits[0, learned.argmax()] < 1e-6


@given(three_logits, st.floats(-20, 20), st.floats(0.1, 10))
def test_a_constant_added_to_the_logits_changes_nothing(logits, constant, temperature) -> None:
    one, other = (calibrated(found, temperature, EFFECTIVE, TARGET) for found in (logits, logits.double() + constant))
    assert torch.allclose(one, other, atol=1e-6)


def test_the_grid_holds_one_and_its_minimum_is_that_of_scipy() -> None:
    assert (temperatures(True)[0], temperatures(False)[125]) == (1, 1)
    labels, likelihood = images(SITE, 60, 3)
    logits = wrong_by(2.0, likelihood)

    def objective(log_t: float) -> float:
        scaled = logits.numpy() / math.exp(log_t) + (SITE.log() - EFFECTIVE.log()).numpy()
        losses = np.log(np.exp(scaled).sum(1)) - scaled[np.arange(60), labels.numpy()]
        return float(losses.sum() + log_t**2 / (2 * DEVIATION**2))

    expected = math.exp(minimize_scalar(objective, bounds=(-2, 2), method="bounded").x)
    found = fit_temperature(logits, labels, EFFECTIVE, SITE)
    assert expected > 1.05
    assert found.temperature == pytest.approx(expected, rel=0.011)
    at_site = (logits - EFFECTIVE.log() + SITE.log()).argmax(1)
    assert (found.images, found.errors, found.reason) == (60, int((at_site != labels).sum()), None)
    order = torch.randperm(60, generator=generator(5))
    assert fit_temperature(logits[order], labels[order], EFFECTIVE, SITE) == found


def test_without_an_error_the_prior_keeps_the_temperature_from_the_end_of_the_grid() -> None:
    labels = torch.arange(30) % 3
    logits = 3.0 * torch.nn.functional.one_hot(labels, 3)
    losses = image_losses(logits, labels, None, None, floor=False).sum(1)
    assert best_temperature(losses, math.inf, floor=False) == pytest.approx(float(temperatures(False)[0]))
    assert best_temperature(losses, floor=False) > 0.4
    with_floor = image_losses(logits, labels, None, None, floor=True).sum(1)
    assert best_temperature(with_floor, floor=True) == 1


@pytest.mark.parametrize("number", [0, 1, FEWEST_IMAGES - 1])
def test_few_images_fit_nothing(number) -> None:
    labels = torch.zeros(number, dtype=torch.long)
    logits = torch.tensor([[0.0, 5.0]]).expand(number, 2)
    assert fit_temperature(logits, labels, None, None) == Fitted(1.0, number, number, TOO_FEW)
    assert fit_temperature(logits.new_empty(0, 1), labels[:0], None, None).images == 0


def test_enough_images_fit_and_logits_that_are_not_finite_do_not() -> None:
    labels = torch.zeros(FEWEST_IMAGES, dtype=torch.long)
    logits = torch.tensor([[0.0, 5.0]]).repeat(FEWEST_IMAGES, 1)
    assert fit_temperature(logits, labels, None, None).temperature > 1.5
    logits[3, 1] = float("nan")
    found = fit_temperature(logits, labels, None, None)
    assert (found.temperature, found.reason) == (1.0, NOT_FINITE)
