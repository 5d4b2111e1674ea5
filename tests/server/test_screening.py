"""Messages of a round are compared: which differ in form or in length. More cases: tests/faults."""

import pytest
import torch

from pfedst.messages.payload import NET
from pfedst.server.screening import FEWEST_TO_COMPARE, change_norm, outliers


def messages(**values):
    return {name: {NET: {"w": torch.tensor(value)}} for name, value in values.items()}


def zero(names, length=2):
    return {name: {NET: {"w": torch.zeros(length)}} for name in names}


@pytest.mark.parametrize(
    "odd",
    [
        {NET: {"w": torch.ones(3)}},
        {NET: {"w": torch.ones(2, 1)}},
        {NET: {"w": torch.ones(2).double()}},
        {NET: {"v": torch.ones(2)}},
        {NET: {"w": torch.ones(2), "v": torch.ones(1)}},
        {NET: {"w": torch.ones(2)}, "control": {"c": torch.ones(1)}},
        {NET: {}},
    ],
    ids=str,
)
def test_a_message_of_another_form_is_an_outlier(odd) -> None:
    found = outliers(messages(a=[1.0, 0.0], b=[0.0, 1.0]) | {"c": odd}, zero("abc"), None)
    assert list(found) == ["c"]
    assert "the message from client c has other names, shapes or dtypes" in str(found["c"])


def test_of_two_forms_that_are_equally_frequent_the_first_client_decides() -> None:
    one, other = messages(b=[1.0, 0.0], a=[1.0]), messages(a=[1.0], b=[1.0, 0.0])
    assert list(outliers(one, zero("ab"), None)) == list(outliers(other, zero("ab"), None)) == ["b"]


def test_a_message_that_is_too_long_is_told_with_the_option() -> None:
    found = outliers(messages(a=[1.0, 0.0], b=[2.0, 0.0], c=[0.0, 21.0]), zero("abc"), 10.0)
    assert list(found) == ["c"]
    assert "by a norm of 21, more than 10 times the median over clients (--coordinator.most_norm_ratio)" in str(
        found["c"]
    )
    assert FEWEST_TO_COMPARE == 3


def test_an_outlier_of_form_does_not_count_in_the_median() -> None:
    given = messages(a=[1.0, 0.0], b=[1.0, 0.0], c=[0.0, 21.0], d=[1e9])
    assert sorted(outliers(given, zero("abcd"), 10.0)) == ["c", "d"]


def test_no_message_and_no_change_are_no_outliers() -> None:
    assert outliers({}, {}, 10.0) == {}
    assert outliers(zero("abc"), zero("abc"), 10.0) == {}


def test_whole_numbers_do_not_count_in_a_norm() -> None:
    message = {NET: {"w": torch.tensor([3.0, 4.0]), "n": torch.tensor(10**9)}}
    assert change_norm(message, {}) == 5.0
    assert change_norm(message, {NET: {"w": torch.tensor([3.0, 0.0])}}) == 4.0
    assert change_norm({NET: {"w": torch.full((4,), 1e30)}}, {}) == pytest.approx(2e30)  # squares beyond float32
