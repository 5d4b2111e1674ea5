"""The border: keys, shapes, dtypes and numbers are checked before anything is loaded."""

import pytest
import torch

from pfedst.errors import StateError
from pfedst.messages.payload import check_message, check_tensors, copy_payload, payload_bytes, raw_bytes

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


def message(**parts):
    return {"net": dict(EXPECTED)} | parts


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({}, ['no part "net"']),
        ({"control": {"c": torch.ones(1)}}, ['no part "net"']),
        (message(patients={"ids": torch.ones(1)}), ["patients", "extra_messages", "'control'"]),
        (message(control={"c": torch.tensor(float("nan"))}), ["control", "NaN"]),
        (message(control={"c": [1.0]}), ["control/c", "list"]),
        (message(control={"c": torch.ones(1).to_sparse()}), ["control/c"]),
        (message(control={3: torch.ones(1)}), ["control/3"]),
        (message(control=torch.ones(1)), ["control", "Tensor"]),
        ([], ["list"]),
        (None, ["NoneType"]),
    ],
    ids=lambda value: "" if isinstance(value, list) and value else str(type(value).__name__),
)
def test_a_message_is_what_its_method_declares(found, words) -> None:
    check_message(message(control={"any": torch.ones(1)}), EXPECTED, ("control",), "Mine", "the message")
    with pytest.raises(StateError) as caught:
        check_message(found, EXPECTED, ("control",), "Mine", "the message")
    assert [word for word in ["the message", *words] if word not in str(caught.value)] == []


def test_bytes_are_those_of_the_values_whatever_the_memory() -> None:
    tensor = torch.arange(6.0).reshape(2, 3)
    assert bytes(raw_bytes(tensor.T)) == bytes(raw_bytes(tensor.T.contiguous())) != bytes(raw_bytes(tensor))
    assert len(raw_bytes(torch.tensor(1.0))) == 4
    assert len(raw_bytes(torch.empty(0, 3))) == 0
