"""Losses by hand: the floor of the contrastive loss, and LMMD against its definition."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from pfedst.encoders import AnchorHead
from pfedst.methods.losses import in_batch_contrastive, local_maximum_mean_discrepancy
from pfedst.seeds import generator


def head_of(classes, scale=100.0, size=None) -> AnchorHead:
    """Orthogonal class anchors."""
    head = AnchorHead([f"class {k}" for k in range(classes)], size or classes, scale, "prototypes")
    head.set_anchors(torch.eye(classes, size or classes))
    return head


def floor(targets) -> float:
    counts = torch.bincount(targets)
    return sum(float(n) / len(targets) * math.log(n) for n in counts if n)


# -- in-batch contrastive ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("targets", "least"),
    [
        (torch.arange(8), 0.0),  # every class once
        (torch.arange(32) % 8, math.log(4)),  # 32 images evenly in 8 classes: 1.386
        (torch.tensor([0] * 3 + [1]), 0.75 * math.log(3)),
        (torch.zeros(6, dtype=torch.long), math.log(6)),
        (torch.tensor([0] * 9 + [1] * 6 + [2] * 4 + [3] * 4 + [4] * 3 + [5] * 2 + [6] * 2 + [7] * 2), 1.5335),
    ],
)
def test_with_repeated_classes_the_floor_is_not_zero(targets, least) -> None:
    """Perfect embeddings still pay sum n_c / B log n_c, as images of one class are each other's negatives."""
    assert floor(targets) == pytest.approx(least, abs=1e-4)
    perfect = torch.eye(8)[targets] * 3
    assert in_batch_contrastive(perfect, head_of(8), targets).item() == pytest.approx(least, abs=1e-4)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=12), st.integers(0, 2**31))
def test_nothing_is_below_the_floor(targets, seed) -> None:
    targets = torch.tensor(targets)
    embedding = torch.randn(len(targets), 5, generator=generator(seed))
    assert in_batch_contrastive(embedding, head_of(5, scale=10.0), targets).item() >= floor(targets) - 1e-5


def test_two_images_by_hand() -> None:
    """Cosines with texts (1, 0) and (0, 1), scale 2: rows [2 a, 2 b], both directions averaged."""
    embedding = torch.tensor([[3.0, 4.0], [0.0, 2.0]])  # cosines [.6, .8] and [0, 1]
    loss = in_batch_contrastive(embedding, head_of(2, scale=2.0), torch.tensor([0, 1]))
    images = (math.log(1 + math.exp(1.6 - 1.2)) + math.log(1 + math.exp(0.0 - 2.0))) / 2
    texts = (math.log(1 + math.exp(0.0 - 1.2)) + math.log(1 + math.exp(1.6 - 2.0))) / 2
    assert loss.item() == pytest.approx((images + texts) / 2, rel=1e-5)


def test_the_texts_are_those_of_each_image_s_class() -> None:
    head, targets = head_of(4, scale=5.0, size=6), torch.tensor([2, 0, 2])
    embedding = torch.randn(3, 6, generator=generator(0))
    scores = 5.0 * F.normalize(embedding, dim=-1) @ torch.eye(4, 6)[targets].T
    expected = -(scores.log_softmax(0).diagonal().mean() + scores.log_softmax(1).diagonal().mean()) / 2
    assert in_batch_contrastive(embedding, head, targets).item() == pytest.approx(expected.item(), rel=1e-5)


# -- LMMD --------------------------------------------------------------------------------------------------------


def loop(source, targets, target, soft) -> float:
    """LMMD with a loop for every sum, in float64."""
    source, target, soft = source.double(), target.double(), soft.double()
    every = [*source, *target]
    distances = [[float((a - b).square().sum()) for b in every] for a in every]
    base = sum(map(sum, distances)) / (len(every) ** 2 - len(every))

    def kernel(i, j):
        return sum(math.exp(-distances[i][j] / (base * factor)) for factor in (0.25, 0.5, 1, 2, 4))

    n, m = len(source), len(target)
    common = sorted(set(targets.tolist()) & set(soft.argmax(1).tolist()))
    total = 0.0
    for c in common:
        ws = [float(y == c) / targets.tolist().count(c) for y in targets.tolist()]
        wt = [float(soft[j, c]) / float(soft[:, c].sum()) for j in range(m)]
        assert sum(ws) == pytest.approx(1)
        assert sum(wt) == pytest.approx(1)
        total += sum(ws[i] * ws[j] * kernel(i, j) for i in range(n) for j in range(n))
        total += sum(wt[i] * wt[j] * kernel(n + i, n + j) for i in range(m) for j in range(m))
        total -= 2 * sum(ws[i] * wt[j] * kernel(i, n + j) for i in range(n) for j in range(m))
    return total / len(common) if common else 0.0


def clusters(count, seed, shift=0.0, permute=False, classes=4, size=8):
    """Features in one cluster a class, and their classes."""
    targets = torch.arange(count) % classes
    places = (targets + 1) % classes if permute else targets
    return 3 * torch.eye(classes, size)[places] + 0.3 * torch.randn(
        count, size, generator=generator(seed)
    ) + shift, targets


def sure(targets, classes=4) -> torch.Tensor:
    return F.one_hot(targets, classes).float()


@pytest.mark.parametrize("seed", range(3))
def test_it_is_the_definition_written_as_loops(seed) -> None:
    source, targets = torch.randn(9, 5, generator=generator(seed)), torch.tensor([0, 1, 1, 2, 0, 2, 2, 1, 0])
    target, soft = (
        torch.randn(7, 5, generator=generator(seed + 9)),
        torch.rand(7, 4, generator=generator(seed)).softmax(1),
    )
    found = local_maximum_mean_discrepancy(source, targets, target, soft)
    assert found.item() == pytest.approx(loop(source, targets, target, soft), rel=1e-4)


def test_alike_is_less_than_shifted_is_less_than_permuted() -> None:
    """Alike marginals do not help where classes have changed places: that is what LMMD is for."""
    source, targets = clusters(64, 0)
    values = []
    for options in ({}, {"shift": 1.0}, {"permute": True}):
        target, labels = clusters(64, 1, **options)
        values.append(local_maximum_mean_discrepancy(source, targets, target, sure(labels)).item())
    same, shifted, permuted = values
    assert 0 < 10 * same < shifted < permuted


def test_a_distribution_is_at_no_distance_from_itself() -> None:
    source, targets = clusters(16, 0)
    assert local_maximum_mean_discrepancy(source, targets, source, sure(targets)).item() == pytest.approx(0, abs=1e-5)


def test_without_a_common_class_it_is_zero() -> None:
    source, target = torch.randn(4, 3).requires_grad_(), torch.randn(5, 3)
    value = local_maximum_mean_discrepancy(source, torch.tensor([0, 0, 1, 1]), target, sure(torch.full((5,), 2)))
    assert value.item() == 0.0
    assert value.ndim == 0


def test_only_classes_present_in_both_count() -> None:
    """A class that only the source has, or that no target image is likeliest to be, changes nothing but bandwidths."""
    source, targets = clusters(16, 0)
    target, labels = clusters(16, 1)
    soft = 0.9 * sure(labels) + 0.025
    soft[labels == 3] = torch.tensor([0.7, 0.1, 0.1, 0.1])
    value = local_maximum_mean_discrepancy(source, targets, target, soft)
    assert value.item() == pytest.approx(loop(source, targets, target, soft), rel=1e-4)


@pytest.mark.parametrize("counts", [(6, 6), (1, 1), (1, 5), (5, 1)])
def test_gradients_are_finite_and_reach_both_sides(counts) -> None:
    source, target = (torch.randn(n, 5, generator=generator(n + i)).requires_grad_() for i, n in enumerate(counts))
    soft = torch.full((counts[1], 3), 0.1)
    soft[:, 0] = 0.8
    local_maximum_mean_discrepancy(source, torch.zeros(counts[0], dtype=torch.long), target, soft).backward()
    assert all(torch.isfinite(side.grad).all() and side.grad.norm() > 0 for side in (source, target))


def test_identical_features_give_zero_and_no_nan() -> None:
    same = torch.ones(4, 3, requires_grad=True)
    value = local_maximum_mean_discrepancy(same, torch.tensor([0, 0, 1, 1]), same, sure(torch.tensor([0, 0, 1, 1])))
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-5)
    assert torch.isfinite(same.grad).all()


def test_soft_labels_of_zero_are_no_division_by_zero() -> None:
    source, targets = clusters(8, 0)
    value = local_maximum_mean_discrepancy(source, targets, clusters(8, 1)[0], sure(torch.zeros(8, dtype=torch.long)))
    assert torch.isfinite(value)
    assert value > 0
