"""What the server knows of its clients' states: which fits are merged, and which must not be lost."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pfedst.errors import StateError
from pfedst.server.merged import Merged

NAMES = ("a", "b")


def test_before_the_first_fit_nothing_is_pinned() -> None:
    merged = Merged.none_of(NAMES)
    assert merged.after == {"a": 0, "b": 0}
    assert merged.pinned("a") == merged.pinned("b") == ()


def test_fits_behind_the_best_round_and_behind_every_kept_round_are_pinned() -> None:
    merged = Merged({"a": 9, "b": 5}, 4, {"a": 4, "b": 3}, [{"a": 7, "b": 5}, {"a": 9, "b": 5}])
    assert merged.pinned("a") == (4, 7, 9)
    assert merged.pinned("b") == (3, 5)
    assert merged.pinned("another") == ()


def test_a_fit_that_is_only_fine_tuned_is_not_pinned() -> None:
    """Of the fits that are merged, `after` may be a fine-tuned one; no round is resumed from it."""
    assert Merged({"a": 5, "b": 5}, None, {}, [{"a": 4, "b": 4}]).pinned("a") == (4,)


numbers = st.fixed_dictionaries({name: st.integers(0, 10**6) for name in NAMES})


@given(st.builds(Merged, numbers, st.none() | st.integers(0, 99), st.just({}) | numbers, st.lists(numbers, max_size=3)))
def test_what_is_saved_comes_back(merged) -> None:
    about = json.loads(json.dumps(merged.about()))
    assert Merged.from_about(about | {"records": {}}, NAMES) == merged


def test_what_comes_back_is_no_longer_what_was_saved() -> None:
    about = Merged.none_of(NAMES).about()
    found = Merged.from_about(about, NAMES)
    found.after["a"] = 3
    assert about["after"]["a"] == 0


ABOUT = Merged({"a": 1, "b": 1}, 1, {"a": 1, "b": 1}, [{"a": 1, "b": 1}]).about()


@pytest.mark.parametrize(
    "change",
    [
        {"after": {"a": 1}},
        {"after": {"a": 1, "b": 1, "c": 1}},
        {"after": {"a": -1, "b": 1}},
        {"after": {"a": "1", "b": 1}},
        {"after": {"a": 1.5, "b": 1}},
        {"after": [1, 1]},
        {"after": None},
        {"best": {}},
        {"best": {"round": "1", "after": {}}},
        {"best": {"round": 1, "after": {"a": None}}},
        {"best": 3},
        {"kept": [{"a": -1}]},
        {"kept": [3]},
        {"kept": None},
    ],
    ids=str,
)
def test_what_no_server_saves_is_refused(change) -> None:
    assert Merged.from_about(ABOUT, NAMES).after == {"a": 1, "b": 1}
    with pytest.raises(StateError, match="the saved round"):
        Merged.from_about(ABOUT | change, NAMES)
    for key in change:
        with pytest.raises(StateError, match="the saved round"):
            Merged.from_about({name: value for name, value in ABOUT.items() if name != key}, NAMES)
