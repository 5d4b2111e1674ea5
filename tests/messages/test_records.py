"""The record of a fit: what a client must report, and which numbers the server takes."""

import pytest

from pfedst.messages.records import FIT_RECORD, is_count, is_fit_record, is_integer, is_number, is_positive, is_size

RECORD = {"train_loss": 0.5, "fit_seconds": 1.0, "images": 24, "skipped_steps": 0, "peak_memory_bytes": None}


def test_a_record_that_a_client_writes() -> None:
    assert set(RECORD) == set(FIT_RECORD)
    assert is_fit_record(RECORD)
    assert is_fit_record(RECORD | {"train_loss": -1, "peak_memory_bytes": 2**40, "trained": {}, "unknown": object()})


@pytest.mark.parametrize("key", RECORD)
def test_a_record_without_one_of_its_numbers(key) -> None:
    assert not is_fit_record({name: value for name, value in RECORD.items() if name != key})


@pytest.mark.parametrize("key", RECORD)
@pytest.mark.parametrize("value", ["0.1", [], {}, True, 10**400, float("nan"), float("inf"), 1e200, 3 + 0j], ids=repr)
def test_a_record_with_a_value_of_another_kind(key, value) -> None:
    assert not is_fit_record(RECORD | {key: value})


@pytest.mark.parametrize("key", ["fit_seconds", "images", "skipped_steps", "peak_memory_bytes"])
def test_a_record_with_a_negative_number(key) -> None:
    assert not is_fit_record(RECORD | {key: -1})


@pytest.mark.parametrize("record", [None, [], 3, "x", {}])
def test_what_is_no_record(record) -> None:
    assert not is_fit_record(record)


def test_numbers_can_be_squared_and_summed() -> None:
    assert is_integer(2**63 - 1)
    assert is_integer(-(2**63) + 1)
    assert not is_integer(2**63)
    assert not is_integer(True)
    assert not is_integer(1.0)
    assert is_number(1e99)
    assert is_number(-3)
    assert not is_number(1e100)
    assert is_count(0)
    assert not is_count(-1)
    assert is_positive(0.0)
    assert not is_positive(-0.1)
    assert is_size(None)
    assert not is_size(1.5)
