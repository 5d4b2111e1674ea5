"""Class priors: two populations whose posterior is known at any prior, a mixture by hand, and files of frequencies."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pfedst.errors import ConfigurationError
from pfedst.methods.criteria import BalancedSoftmax, ClassWeighted, CrossEntropy
from pfedst.methods.priors import TargetPrior, mixture, prior_shift, read_prior, uniform

CLASSES = ("nevus", "melanoma", "keratosis")
X = torch.linspace(-8, 8, 801, dtype=torch.float64)
"""A grid of the feature, fine enough that sums over it are integrals."""
MEANS = (-1.0, 1.0)


def densities():
    """p(x | y) of two Gaussians with unit variance on the grid, (2, points)."""
    return torch.stack([torch.exp(-((X - mean) ** 2) / 2) for mean in MEANS]) / math.sqrt(2 * math.pi)


def posterior(prior):
    """p(y = 1 | x) at class frequencies."""
    joint = densities() * torch.tensor(prior, dtype=torch.float64)[:, None]
    return joint[1] / joint.sum(0)


def logistic_model(criterion, counts):
    """The logits (points, 2) of w x + b at the minimum of a criterion over the whole population."""
    counts = torch.tensor(counts).double()
    joint = densities() * (counts / counts.sum())[:, None] * (X[1] - X[0])
    parameters = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([parameters], max_iter=500, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def logits():
        return torch.stack([torch.zeros_like(X), parameters[0] * X + parameters[1]], 1)

    def closure():
        optimizer.zero_grad()
        total = torch.zeros((), dtype=torch.float64)
        for y in range(2):
            # the mean of a batch of equal images is the loss of one: the criteria have no other way to weights
            if isinstance(criterion, ClassWeighted):
                each = torch.nn.functional.cross_entropy(logits(), torch.full((len(X),), y), reduction="none")
                each = each * criterion.weights(counts)[y]
            else:
                offset = getattr(criterion, "tau", 0.0) * (counts + criterion.pseudo_count).log()
                each = torch.nn.functional.cross_entropy(logits() + offset, torch.full((len(X),), y), reduction="none")
            total = total + (each * joint[y]).sum()
        total.backward()
        return total

    optimizer.step(closure)
    return logits().detach()


@pytest.mark.parametrize("target", [[0.5, 0.5], [0.2, 0.8], [0.99, 0.01]])
@pytest.mark.parametrize(
    "criterion",
    [CrossEntropy(), BalancedSoftmax(), BalancedSoftmax(0.6), ClassWeighted(), ClassWeighted(0.5)],
    ids=str,
)
def test_after_the_correction_a_logistic_model_gives_the_posterior_at_another_prior(criterion, target) -> None:
    """Counts are so large that the pseudo-count does not show; a logistic model is right for two such Gaussians."""
    counts = [9_000_000, 1_000_000]
    raw = logistic_model(criterion, counts)
    shift = prior_shift(criterion.effective_prior(torch.tensor(counts).double()), torch.tensor(target))
    assert torch.allclose((raw + shift).softmax(1)[:, 1], posterior(target), atol=1e-4)


def test_without_the_correction_it_does_not() -> None:
    raw = logistic_model(CrossEntropy(), [9_000_000, 1_000_000])
    assert torch.allclose(raw.softmax(1)[:, 1], posterior([0.9, 0.1]), atol=1e-5)
    assert (raw.softmax(1)[:, 1] - posterior([0.5, 0.5])).abs().max() > 0.3


def test_a_merged_model_has_the_prior_of_the_mixture() -> None:
    """Two sites with the same p(x | y): the minimum over both is the posterior at the mixture of their priors."""
    priors = [torch.tensor([0.9, 0.1]).double(), torch.tensor([0.3, 0.7]).double()]
    mixed = mixture(priors, [100, 300])
    assert mixed.tolist() == pytest.approx([0.45, 0.55])
    raw = logistic_model(CrossEntropy(), [int(100 * 0.9 + 300 * 0.3) * 10**6, int(100 * 0.1 + 300 * 0.7) * 10**6])
    assert torch.allclose((raw + prior_shift(mixed, priors[0])).softmax(1)[:, 1], posterior([0.9, 0.1]), atol=1e-5)


@given(st.lists(st.integers(0, 1000), min_size=3, max_size=3), st.floats(0.1, 10))
def test_a_correction_and_its_reverse_change_nothing(counts, pseudo_count) -> None:
    pi = CrossEntropy(pseudo_count=pseudo_count).effective_prior(torch.tensor(counts).double())
    there, back = prior_shift(pi, uniform(3)), prior_shift(uniform(3), pi)
    assert torch.allclose(there + back, torch.zeros(3).double(), atol=1e-12)
    assert prior_shift(pi, pi).tolist() == [0, 0, 0]


def test_equal_counts_change_nothing() -> None:
    pi = CrossEntropy().effective_prior(torch.full((3,), 7).double())
    logits = torch.tensor([[0.3, -2.0, 1.5]])
    assert torch.equal(logits + prior_shift(pi, uniform(3)).float(), logits)


def test_target_priors_at_a_site() -> None:
    site = torch.tensor([0.7, 0.2, 0.1]).double()
    assert TargetPrior("balanced").of_classes(CLASSES).at(site).tolist() == pytest.approx([1 / 3] * 3)
    assert torch.equal(TargetPrior("site").of_classes(CLASSES).at(site), site)
    assert [bool(TargetPrior(word)) for word in ("training", "balanced", "site")] == [False, True, True]
    assert TargetPrior().of_classes(CLASSES).label == ""


def test_a_file_of_frequencies(tmp_path) -> None:
    (tmp_path / "clinic.json").write_text(json.dumps({"melanoma": 0.1, "keratosis": 0.3, "nevus": 0.6}))
    (tmp_path / "clinic.csv").write_text("class,frequency\nmelanoma, 0.1\n\nkeratosis,0.3\nnevus,0.6\n")
    (tmp_path / "bare.csv").write_text("melanoma,0.1\nkeratosis,0.3\nnevus,0.6004\n")
    for file in ("clinic.json", "clinic.csv", "bare.csv"):
        found = TargetPrior(str(tmp_path / file)).of_classes(CLASSES)
        assert found.frequencies.tolist() == pytest.approx([0.6, 0.1, 0.3], abs=1e-3)
        assert float(found.frequencies.sum()) == pytest.approx(1, abs=1e-12)
        assert torch.equal(found.at(uniform(3)), found.frequencies)
    label = TargetPrior(str(tmp_path / "clinic.json")).of_classes(CLASSES).label
    assert label == "clinic.json: nevus 0.6, melanoma 0.1, keratosis 0.3"  # no folder: it may name a person


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", '{"nevus": 0.5, "melanoma": 0.5}', "no frequency of keratosis; name all classes"),
        ("a.json", '{"nevus": 0.5, "melanom": 0.2, "keratosis": 0.3}', 'no class "melanom". Did you mean "melanoma"'),
        ("a.json", '{"nevus": 0.9, "melanoma": 0.2, "keratosis": 0.1}', "have the sum 1.2; it must be 1"),
        ("a.json", '{"nevus": 1.0, "melanoma": 0, "keratosis": 0.0}', 'class "melanoma" is 0; it must be above 0'),
        ("a.json", '{"nevus": "1", "melanoma": 0.5, "keratosis": 0.5}', "class \"nevus\" is '1'; it must be above 0"),
        ("a.json", '{"nevus": true, "melanoma": 0.5, "keratosis": 0.5}', 'class "nevus" is True'),
        ("a.json", '{"nevus": NaN, "melanoma": 0.5, "keratosis": 0.5}', 'class "nevus" is nan'),
        ("a.json", '{"nevus": 0.5, "nevus": 0.2, "keratosis": 0.3}', 'the class "nevus" is there twice'),
        ("a.json", "[0.5, 0.2, 0.3]", "must hold an object of class name -> frequency"),
        ("a.json", "nevus: 1", "no JSON"),
        ("a.csv", "nevus,0.5\nmelanoma,much\nkeratosis,0.2\n", "each row must hold a class name and its frequency"),
        ("a.csv", "nevus,0.5,x\n", "each row must hold a class name and its frequency"),
        ("a.csv", "", "each row must hold a class name and its frequency"),
    ],
)
def test_a_file_that_holds_no_frequencies_of_these_classes_is_refused(tmp_path, name, content, message) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigurationError) as error:
        read_prior(tmp_path / name, CLASSES)
    assert message in str(error.value)
    assert str(error.value).startswith(f"--model.prior {tmp_path / name}: ")


def test_a_word_that_is_no_file_is_refused(tmp_path) -> None:
    with pytest.raises(ConfigurationError, match="--model.prior balance: no such file.*training, balanced, site"):
        TargetPrior("balance").of_classes(CLASSES)
    (tmp_path / "latin.json").write_bytes(b'{"nevus\xe9": 1}')
    with pytest.raises(ConfigurationError, match="latin.json: cannot be read"):
        read_prior(tmp_path / "latin.json", CLASSES)
