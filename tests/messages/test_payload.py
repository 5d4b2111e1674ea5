"""The border: keys, shapes, dtypes and numbers are checked before anything is loaded."""

import pytest
import torch

from pfedst.errors import StateError
from pfedst.messages.payload import check_tensors, copy_payload, payload_bytes

EXPECTED = {"side.up.weight": torch.zeros(3, 2), "side.up.bias": torch.zeros(3)}


def test_bytes_are_counted_from_the_tensors() -> None:
    payload = {"net": EXPECTED, "extra": {"n": torch.zeros(2, dtype=torch.int64), "h": torch.zeros(5).half()}}
    assert payload_bytes(payload) == 6 * 4 + 3 * 4 + 2 * 8 + 5 * 2


def test_a_copy_shares_no_memory() -> None:
    payload = {"net": {"w": torch.zeros(2)}}
    copied = copy_payload(payload)
    payload["net"]["w"].fill_(1)
    assert copied["net"]["w"].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"side.up.bias": None}, ["missing: side.up.bias"]),
        (
            {"side.up.wieght": torch.zeros(1)},
            ["unexpected: side.up.wieght", "nearest declared: side.up.weight"],
        ),
        ({"side.up.bias": torch.zeros(4)}, ["side.up.bias", "(4,)", "(3,)"]),
        ({"side.up.bias": torch.zeros(3).double()}, ["float64", "float32"]),
        ({"side.up.bias": torch.tensor([0.0, float("nan"), 0.0])}, ["side.up.bias", "NaN"]),
        ({"side.up.bias": torch.tensor([0.0, float("inf"), 0.0])}, ["side.up.bias", "Inf"]),
    ],
)
def test_what_does_not_fit_is_named(change, words) -> None:
    state = {key: value for key, value in (EXPECTED | change).items() if value is not None}
    with pytest.raises(StateError) as caught:
        check_tensors(state, EXPECTED, "the message from client a")
    assert all(word in str(caught.value) for word in ["client a", *words])


def test_large_numbers_whose_sum_overflows_are_finite() -> None:
    state = EXPECTED | {"side.up.bias": torch.full((3,), 3e38)}
    check_tensors(state, EXPECTED, "the message from client a")


def test_every_dtype_is_checked() -> None:
    state = {"half": torch.ones(2).half(), "double": torch.ones(2).double(), "count": torch.tensor(3)}
    check_tensors(state, state, "a message")
    for bad in (
        state | {"half": torch.full((2,), torch.inf).half()},
        state | {"double": torch.tensor([1.0, torch.nan]).double()},
    ):
        with pytest.raises(StateError, match="NaN or Inf"):
            check_tensors(bad, state, "a message")
