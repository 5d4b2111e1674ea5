"""Losses against sums by hand, torch's own, and a population whose posterior is known."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from pfedst.errors import ConfigurationError
from pfedst.methods.criteria import BalancedSoftmax, ClassWeighted, CrossEntropy, Focal
from pfedst.seeds import generator

B, K = 6, 4
LOGITS = torch.randn(B, K, generator=generator(0)) * 3
TARGETS = torch.tensor([0, 1, 2, 0, 1, 2])  # none of the last class
EQUAL = torch.full((K,), 5)
COUNTS = torch.tensor([60, 6, 2, 0])
ALL = [
    CrossEntropy(),
    CrossEntropy(label_smoothing=0.1),
    BalancedSoftmax(),
    BalancedSoftmax(tau=0.7, label_smoothing=0.1),
    ClassWeighted(),
    ClassWeighted(power=0.5, label_smoothing=0.1),
    Focal(),
    Focal(gamma=0.5),
]


def name(criterion) -> str:
    return f"{type(criterion).__name__} {criterion.__dict__}"


def test_cross_entropy_is_torchs() -> None:
    assert torch.equal(CrossEntropy()(LOGITS, TARGETS, COUNTS), F.cross_entropy(LOGITS, TARGETS))
    smoothed = F.cross_entropy(LOGITS, TARGETS, label_smoothing=0.2)
    assert torch.equal(CrossEntropy(label_smoothing=0.2)(LOGITS, TARGETS, COUNTS), smoothed)


@pytest.mark.parametrize("tau", [0.3, 1.0, 2.0])
def test_with_equal_counts_balanced_softmax_is_cross_entropy_bit_for_bit(tau) -> None:
    assert torch.equal(BalancedSoftmax(tau)(LOGITS, TARGETS, EQUAL), F.cross_entropy(LOGITS, TARGETS))


@pytest.mark.parametrize("criterion", [BalancedSoftmax(tau=0), ClassWeighted(power=0), Focal(gamma=0)], ids=name)
def test_without_strength_each_is_cross_entropy(criterion) -> None:
    assert torch.allclose(criterion(LOGITS, TARGETS, COUNTS), F.cross_entropy(LOGITS, TARGETS))


def test_with_equal_counts_every_class_weighs_one() -> None:
    assert torch.allclose(ClassWeighted().weights(EQUAL), torch.ones(K))


def test_balanced_softmax_by_hand() -> None:
    """Ren et al., equation 3: the probability of class y is n_y e^f_y / sum_c n_c e^f_c."""
    logits, counts = torch.tensor([[0.5, -1.0]]), [9, 1]
    first, second = 10 * math.exp(0.5), 2 * math.exp(-1.0)  # with a pseudo-count of 1
    found = BalancedSoftmax()(logits, torch.tensor([1]), torch.tensor(counts))
    assert float(found) == pytest.approx(-math.log(second / (first + second)))


def test_the_gradient_of_balanced_softmax_by_hand() -> None:
    logits = LOGITS.clone().requires_grad_()
    BalancedSoftmax()(logits, TARGETS, COUNTS).backward()
    shifted = (LOGITS + torch.log(COUNTS + 1.0)).softmax(1)
    assert torch.allclose(logits.grad, (shifted - F.one_hot(TARGETS, K)) / B, atol=1e-7)


def test_class_weights_by_hand() -> None:
    """Counts 3 and 1 with the pseudo-count: 4 and 2, of 6; weights proportional to 1/4 and 1/2, their mean is 1."""
    weights = ClassWeighted().weights(torch.tensor([3, 1]))
    assert weights.tolist() == pytest.approx([0.75, 1.5])
    assert (4 * weights[0] + 2 * weights[1]) / 6 == pytest.approx(1)


def test_the_gradient_of_class_weights_by_hand() -> None:
    logits, criterion = LOGITS.clone().requires_grad_(), ClassWeighted(power=0.5)
    criterion(logits, TARGETS, COUNTS).backward()
    each = criterion.weights(COUNTS)[TARGETS][:, None]
    assert torch.allclose(logits.grad, each * (LOGITS.softmax(1) - F.one_hot(TARGETS, K)) / B, atol=1e-6)


def test_focal_loss_by_hand_and_its_gradient_by_differences() -> None:
    logits = LOGITS.double().requires_grad_()
    p = LOGITS.double().softmax(1)[torch.arange(B), TARGETS]
    assert float(Focal()(logits, TARGETS, COUNTS)) == pytest.approx(float((-((1 - p) ** 2) * p.log()).mean()), rel=1e-5)
    logits = LOGITS.clone().requires_grad_()
    Focal()(logits, TARGETS, COUNTS).backward()
    exact = LOGITS.double().requires_grad_()
    (
        -((1 - exact.softmax(1)[torch.arange(B), TARGETS]) ** 2) * exact.log_softmax(1)[torch.arange(B), TARGETS]
    ).mean().backward()
    assert torch.allclose(logits.grad.double(), exact.grad, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("criterion", ALL, ids=name)
def test_loss_and_gradients_are_finite_for_absent_classes_and_sure_predictions(criterion, dtype) -> None:
    """A class without images as a target too: in validation, and at a site that holds one class."""
    for counts in (COUNTS, torch.zeros(K, dtype=torch.long), torch.tensor([0, 0, 0, 9])):
        for scale in (1.0, 100.0):
            logits = (LOGITS * scale).to(dtype).requires_grad_()
            loss = criterion(logits, torch.tensor([0, 1, 2, 3, 3, 3]), counts)
            loss.backward()
            assert loss.dtype == torch.float32
            assert loss.isfinite()
            assert logits.grad.isfinite().all()


@pytest.mark.parametrize("criterion", ALL, ids=name)
def test_under_autocast_the_loss_is_that_of_float32(criterion) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        found = criterion(LOGITS, TARGETS, COUNTS)
    assert torch.equal(found, criterion(LOGITS, TARGETS, COUNTS))


@given(st.lists(st.integers(0, 1000), min_size=2, max_size=9), st.floats(0.1, 10))
def test_every_effective_prior_is_a_distribution(counts, pseudo_count) -> None:
    counts = torch.tensor(counts)
    for criterion in (
        CrossEntropy(pseudo_count=pseudo_count),
        BalancedSoftmax(0.7, pseudo_count=pseudo_count),
        ClassWeighted(0.5, pseudo_count=pseudo_count),
    ):
        prior = criterion.effective_prior(counts)
        assert float(prior.sum()) == pytest.approx(1, abs=1e-5)
        assert (prior > 0).all()


def test_the_effective_prior_of_full_strength_is_uniform() -> None:
    for criterion in (BalancedSoftmax(), ClassWeighted()):
        assert criterion.effective_prior(COUNTS).tolist() == pytest.approx([0.25] * K)
    assert CrossEntropy().effective_prior(COUNTS).tolist() == pytest.approx([61 / 72, 7 / 72, 3 / 72, 1 / 72])
    assert torch.allclose(BalancedSoftmax(tau=0).effective_prior(COUNTS), CrossEntropy().effective_prior(COUNTS))


@pytest.mark.parametrize(
    "criterion", [CrossEntropy(), BalancedSoftmax(), BalancedSoftmax(0.5), ClassWeighted()], ids=name
)
def test_the_minimum_of_each_loss_divided_by_its_effective_prior_is_the_likelihood(criterion) -> None:
    """Three values of one feature, two classes: free logits for each value, p(x|y) known, 90 % of the images in class 0.

    Counts are in the thousands, so that the pseudo-count does not show.
    """
    likelihood = torch.tensor([[0.6, 0.3, 0.1], [0.1, 0.3, 0.6]])  # p(x | y)
    counts = torch.tensor([9000, 1000])
    table = likelihood * counts[:, None] / counts.sum()  # p(x, y)
    logits = torch.zeros(3, 2, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=200, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        each = torch.stack(
            [criterion(logits[x : x + 1], torch.tensor([y]), counts) * table[y, x] for y in range(2) for x in range(3)]
        )
        each.sum().backward()
        return each.sum()

    optimizer.step(closure)
    corrected = logits.detach() - criterion.effective_prior(counts).log()
    found = corrected[:, 0] - corrected[:, 1]
    assert torch.allclose(found, (likelihood[0] / likelihood[1]).log(), atol=2e-2)


@pytest.mark.parametrize(
    "criterion", [Focal(), CrossEntropy(0.1), BalancedSoftmax(1, 0.1), ClassWeighted(1, 0.1)], ids=name
)
def test_a_loss_without_an_effective_prior_says_so(criterion) -> None:
    with pytest.raises(ConfigurationError, match="--model.loss.*belong to no class prior"):
        criterion.effective_prior(COUNTS)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CrossEntropy(label_smoothing=1.0), "label_smoothing 1.0: must be 0 or more and below 1"),
        (lambda: CrossEntropy(pseudo_count=0.0), "pseudo_count 0.0: must be above 0"),
        (lambda: BalancedSoftmax(tau=-1), "tau -1: must be 0 or more"),
        (lambda: ClassWeighted(power=float("nan")), "power nan: must be 0 or more"),
        (lambda: Focal(gamma=-0.5), "gamma -0.5: must be 0 or more"),
    ],
)
def test_options_out_of_range_are_refused(make, message) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make()
