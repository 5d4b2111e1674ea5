"""Abstention: thresholds, coverage and risk by hand, and properties of any confidences."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pfedst.evaluation.selective import MOST_POINTS, Selective, risk_coverage, selective, threshold_for

CONFIDENCE = torch.tensor([0.9, 0.5, 0.7, 0.7, 0.6], dtype=torch.float64)
RIGHT = torch.tensor([True, False, True, False, True])


@pytest.mark.parametrize(
    ("coverage", "expected"), [(0.2, 0.9), (0.21, 0.7), (0.6, 0.7), (0.8, 0.6), (1.0, 0.5), (0.01, 0.9)]
)
def test_a_threshold_is_the_highest_that_covers_enough(coverage, expected) -> None:
    assert threshold_for(CONFIDENCE, coverage) == expected


def test_a_share_of_images_that_is_a_whole_number_is_no_more_than_that() -> None:
    confidence = torch.linspace(0.01, 1, 100, dtype=torch.float64)
    assert 0.07 * 100 > 7, "as a float"
    assert int((confidence >= threshold_for(confidence, 0.07)).sum()) == 7


def test_coverage_and_accuracy_by_hand() -> None:
    assert selective(CONFIDENCE, RIGHT, 0.7) == Selective(0.6, pytest.approx(2 / 3))
    assert selective(CONFIDENCE, RIGHT, 0.95) == Selective(0, None)
    assert selective(CONFIDENCE, RIGHT, 0.0) == Selective(1, pytest.approx(0.6))


def test_a_curve_by_hand() -> None:
    """Ten images: a point behind each fifth of the most confident; equal confidences are one point."""
    confidence = torch.tensor([0.9, 0.8, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])
    right = torch.tensor([True, True, False, True, True, False, True, False, False, True])
    assert risk_coverage(confidence, right) == [[0.5, pytest.approx(0.2)], [1.0, pytest.approx(0.4)]]
    assert risk_coverage(torch.full((10,), 0.5), right) == [[1.0, pytest.approx(0.4)]]
    assert risk_coverage(confidence[:3], right[:3]) == [[1.0, pytest.approx(1 / 3)]]
    assert risk_coverage(confidence[:0], right[:0]) == []


shares = st.floats(0, 1)


@given(st.lists(st.tuples(shares, st.booleans()), min_size=1, max_size=150), st.floats(0.01, 1))
def test_of_any_confidences(pairs, coverage) -> None:
    confidence = torch.tensor([value for value, _ in pairs], dtype=torch.float64)
    right = torch.tensor([hit for _, hit in pairs])
    threshold = threshold_for(confidence, coverage)
    assert selective(confidence, right, threshold).coverage >= coverage - 1e-9
    above = torch.nextafter(torch.tensor(threshold, dtype=torch.float64), torch.tensor(2.0, dtype=torch.float64))
    assert selective(confidence, right, float(above)).coverage < coverage
    curve = risk_coverage(confidence, right)
    assert 1 <= len(curve) <= MOST_POINTS
    assert [point[0] for point in curve] == sorted({point[0] for point in curve})
    assert curve[-1] == [1.0, pytest.approx(1 - right.double().mean().item())]
