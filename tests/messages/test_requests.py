"""Requests and replies: plain values and tensors that survive the way, and a digest of all that a reply depends on."""

import json
from dataclasses import fields, replace
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pfedst.messages.requests import (
    ANCHORS,
    GENERIC,
    PRIORS,
    PROTOTYPES,
    RESERVED_PARTS,
    Kind,
    Reply,
    Request,
    SplitName,
)

REQUEST = Request(
    "fit",
    "run",
    round=3,
    after=2,
    pinned=(1, 2),
    keep_optimizer=True,
    evaluate=("validation", "test"),
    finetune_epochs=0,
    parts={"net": {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(3)}, "control": {"a": torch.ones(2)}},
)


def requests():
    numbers = st.integers(0, 2**40)
    return st.builds(
        Request,
        kind=st.sampled_from(get_args(Kind)),
        run=st.text(),
        round=numbers,
        after=numbers,
        pinned=st.lists(numbers, max_size=4).map(tuple),
        keep_optimizer=st.booleans(),
        evaluate=st.lists(st.sampled_from(get_args(SplitName)), unique=True).map(tuple),
        finetune_epochs=st.integers(0, 9),
        lr_factor=st.floats(0, 1, exclude_min=True),
    )


@given(requests())
def test_values_are_json_and_come_back(request) -> None:
    values = json.loads(json.dumps(request.values()))
    assert values == request.values()
    assert "parts" not in values
    back = Request.from_values(values, request.parts)
    assert back == request
    assert hash((back.pinned, back.evaluate)) == hash((request.pinned, request.evaluate))  # tuples again
    assert back.digest() == request.digest()


def test_values_with_tensors_come_back() -> None:
    back = Request.from_values(json.loads(json.dumps(REQUEST.values())), REQUEST.parts)
    assert back == REQUEST
    assert back.digest() == REQUEST.digest()


def with_tensor(change):
    parts = {part: dict(state) for part, state in REQUEST.parts.items()}
    parts["net"]["a"] = change(parts["net"]["a"].clone())
    return {"parts": parts}


CHANGES = {
    "kind": {"kind": "evaluate"},
    "run": {"run": "run2"},
    "round": {"round": 4},
    "after": {"after": 1},
    "keep_optimizer": {"keep_optimizer": False},
    "evaluate": {"evaluate": ("validation",)},
    "order of splits": {"evaluate": ("test", "validation")},
    "finetune_epochs": {"finetune_epochs": 1},
    "lr_factor": {"lr_factor": 0.5},
    "one number": with_tensor(lambda tensor: tensor + torch.eye(2, 3) * 1e-6),
    "one bit": with_tensor(lambda tensor: tensor.view(torch.int32).bitwise_xor(1).view(torch.float32)),
    "shape": with_tensor(lambda tensor: tensor.reshape(3, 2)),
    "dtype": with_tensor(lambda tensor: tensor.view(torch.int32)),
    "a key less": {"parts": {"net": {"a": REQUEST.parts["net"]["a"]}, "control": REQUEST.parts["control"]}},
    "another key": {"parts": REQUEST.parts | {"control": {"b": torch.ones(2)}}},
    "another part": {"parts": {"net": REQUEST.parts["net"], "other": REQUEST.parts["control"]}},
    "a part more": {"parts": REQUEST.parts | {"x": {"a": torch.ones(2)}}},
    "parts that changed places": {"parts": {"net": REQUEST.parts["control"], "control": REQUEST.parts["net"]}},
    "no parts": {"parts": {}},
    "generic only": {"generic_only": True},
}


def test_every_change_gives_another_digest() -> None:
    digests = {name: replace(REQUEST, **change).digest() for name, change in CHANGES.items()}
    assert REQUEST.digest() not in digests.values()
    assert len(set(digests.values())) == len(CHANGES)
    assert all(len(digest) == 64 for digest in digests.values())


def test_names_are_not_run_together() -> None:
    one, other = ({"a": {"b/c": torch.ones(1)}}, {"a/b": {"c": torch.ones(1)}})
    assert replace(REQUEST, parts=one).digest() != replace(REQUEST, parts=other).digest()


def test_every_field_but_the_pins_is_in_the_digest() -> None:
    changed = {key for change in CHANGES.values() for key in change}
    assert {field.name for field in fields(Request)} == changed | {"pinned"}


def test_pins_do_not_change_the_digest() -> None:
    assert {replace(REQUEST, pinned=pins).digest() for pins in ((), (1, 2), (2, 1), (7,))} == {REQUEST.digest()}


def test_the_digest_is_of_values_and_not_of_memory() -> None:
    parts = {"control": REQUEST.parts["control"], "net": dict(reversed(REQUEST.parts["net"].items()))}
    transposed = parts["net"]["a"].T.contiguous().T
    assert not transposed.is_contiguous()
    parts["net"]["a"] = transposed
    assert replace(REQUEST, parts=parts).digest() == REQUEST.digest()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.bool, torch.uint8])
def test_tensors_of_every_dtype_have_a_digest(dtype) -> None:
    one, other = (replace(REQUEST, parts={"net": {"a": torch.tensor([n, 1]).to(dtype)}}) for n in (0, 1))
    assert one.digest() != other.digest()
    empty = replace(REQUEST, parts={"net": {"a": torch.empty(0, dtype=dtype), "b": torch.tensor(1).to(dtype)}})
    assert empty.digest() != one.digest()


def test_fine_tuning_is_a_fit_after_the_last_round() -> None:
    assert REQUEST.fit_number == 3
    assert replace(REQUEST, finetune_epochs=2).fit_number == 4


def test_anchors_are_no_part_of_the_message_of_the_method() -> None:
    anchors = torch.ones(3, 4)
    request = replace(REQUEST, parts=REQUEST.parts | {ANCHORS: {"classes": anchors}})
    assert request.anchors is anchors
    assert request.message == REQUEST.parts
    assert REQUEST.anchors is None
    assert set(RESERVED_PARTS) == {ANCHORS, GENERIC, PRIORS, PROTOTYPES}


def test_defaults_are_those_of_a_first_request() -> None:
    request = Request("hello", "run")
    assert (request.round, request.after, request.pinned, request.parts) == (0, 0, (), {})
    assert Request("hello", "run").parts is not request.parts
    assert Reply({}).parts == {}
