"""Weighted means by hand, and as properties."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pfedst.errors import StateError
from pfedst.methods.merging import weighted_mean


def test_by_hand() -> None:
    states = [{"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([5.0, 10.0])}]
    assert weighted_mean(states, [3, 1])["w"].tolist() == [2.0, 4.0]


def test_integers_are_rounded_back() -> None:
    states = [{"n": torch.tensor(3)}, {"n": torch.tensor(4)}, {"n": torch.tensor(4)}]
    merged = weighted_mean(states, [1, 1, 1])["n"]
    assert merged.dtype == torch.int64
    assert merged.item() == 4


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=5), st.integers(1, 6))
def test_equal_states_are_a_fixed_point(values, clients) -> None:
    state = {"w": torch.tensor(values)}
    merged = weighted_mean([state] * clients, [0.1 * (k + 1) for k in range(clients)])
    assert torch.equal(merged["w"], state["w"])


@given(st.lists(st.floats(0.1, 10), min_size=2, max_size=5))
def test_scale_of_the_weights_does_not_matter(weights) -> None:
    generator = torch.Generator().manual_seed(0)
    states = [{"w": torch.randn(4, generator=generator)} for _ in weights]
    one = weighted_mean(states, weights)["w"]
    other = weighted_mean(states, [1000 * weight for weight in weights])["w"]
    assert torch.allclose(one, other, rtol=1e-6)
    stacked = torch.stack([state["w"] for state in states])
    assert (one >= stacked.min(0).values - 1e-6).all()
    assert (one <= stacked.max(0).values + 1e-6).all()


@pytest.mark.parametrize(
    ("states", "weights"),
    [
        ([], []),
        ([{"w": torch.ones(1)}], [0]),
        ([{"w": torch.ones(1)}], [float("nan")]),
        ([{"w": torch.ones(1)}], [-1]),
        ([{"w": torch.ones(1)}], [1, 2]),
        ([{"w": torch.ones(1)}, {"v": torch.ones(1)}], [1, 1]),
    ],
)
def test_what_cannot_be_merged_is_refused(states, weights) -> None:
    with pytest.raises(StateError):
        weighted_mean(states, weights)
